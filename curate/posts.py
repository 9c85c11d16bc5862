"""The stage `posts`: tables with metadata of a whole source, such as the dumps of boorus.

CSV, JSON lines or Parquet. A table is cut into chunks (byte ranges, row groups), which are items of a work list: many
are parsed at once, no table is held in memory as a whole, and one that has not changed is not parsed again. Which
picture a row speaks of is found out by `curate.metadata`.
"""

import csv
import json
import posixpath
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curate.sources.folder import TABLE_NAMES
from curate.sources.metadata import METADATA, clean, parse
from shared.corpus import Corpus, state
from shared.errors import UserError
from shared.files import atomic_file
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.worklist import Shard, WorkList, process

Key = Literal["file", "md5", "id"]

COLUMNS: dict[Key, tuple[str, ...]] = {
    "file": ("file_name", "file", "filename", "path", "location"),
    "md5": ("md5",),
    "id": ("id", "post_id"),
}
"""The columns that can say which picture a row speaks of; of one kind the first that is given counts."""

CHUNK = 64 << 20
"""Bytes of JSON lines that are parsed in one go."""

GROUP_ROWS = 8192

CHUNKS = pa.schema(
    [
        pa.field("origin", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
    ]
)
"""`origin`, the table, is relative to the source where it lies in it. `chunk` counts bytes (JSON lines) or row groups
(Parquet)."""

POSTS = pa.schema(
    [
        pa.field("origin", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("error", pa.string()),
        *METADATA,
        pa.field("metadata_error", pa.string()),
    ]
)
"""`place` is a line of CSV, a byte of JSON lines, a row of Parquet. `kind` is a Key, `key` its value; `error` says why
a row is of no use."""

_EXCESS = "\0excess"

Row = tuple[int, dict[str, Any] | str]
"""Its number, and its values or what is wrong with it."""


class PostsSettings(Settings):
    """Where metadata is looked for."""

    tables: tuple[Path, ...] | None = None
    """Default: metadata.csv, .jsonl or .parquet in the source's folder."""
    key: Key | None = None
    """What says which picture a row speaks of: its file, the MD5 of its bytes, or its post's id. Default: the first of
    these for which the table has a column."""


def run(job: Job[PostsSettings]) -> str:
    """Parse what is new; returns a digest of what there is now."""
    corpus = Corpus(job.source)
    chunks = [chunk for table in tables(corpus, job.settings) for chunk in cut(corpus, table, job.settings.key)]
    listing = pa.Table.from_pylist(chunks, CHUNKS)
    work = WorkList(job.folder, ("origin", "state", "chunk"), 1, weight="size")
    work.extend(listing)
    process(work.shards(), partial(parse_shard, job.source), job.engine, "posts", "MB", scale=1_000_000)
    work.allow_empty(POSTS)
    return work.declare(listing)


def tables(corpus: Corpus, settings: PostsSettings) -> list[Path]:
    """The tables to read. Raises UserError where one is missing, or the source has several and none is named."""
    if settings.tables is not None:
        for path in settings.tables:
            if not path.is_file():
                raise UserError(f"posts.tables: {path}: no such file")
        return [path.absolute() for path in settings.tables]
    own = [corpus.folder / name for name in TABLE_NAMES if (corpus.folder / name).is_file()] if corpus.folder else []
    if len(own) > 1:
        raise UserError(
            f"{corpus.root}: holds {' and '.join(p.name for p in own)}; choose with --set posts.tables=[PATH]"
        )
    return own


def cut(corpus: Corpus, path: Path, key: Key | None) -> list[dict[str, Any]]:
    """The CHUNKS of a table. Raises UserError where it cannot be read, or has no column for the key."""
    inside = corpus.folder is not None and path.resolve().is_relative_to(corpus.folder.resolve())
    name = path.resolve().relative_to(corpus.folder.resolve()).as_posix() if inside and corpus.folder else str(path)
    try:
        columns, sizes = _survey(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read this metadata table: {error}") from None
    kind = _key(path, columns, key)
    about = {"origin": name, "state": state(path.stat()), "key": kind}
    return [about | {"chunk": chunk, "size": size} for chunk, size in sizes]


def _survey(path: Path) -> tuple[set[str], list[tuple[int, int]]]:
    """The columns of a table, and number and size of its chunks."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            sizes = [(group, file.metadata.row_group(group).total_byte_size) for group in groups]
            return set(file.schema_arrow.names), sizes
    size = path.stat().st_size
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
            return set(next(csv.reader(text), [])), [(0, size)]
    if path.suffix == ".jsonl":
        first = [row for _, row in _jsonl(path, 0, 1 << 16) if isinstance(row, dict)]
        columns = {key for row in first for key, value in row.items() if not isinstance(value, dict)}
        if any(isinstance(row.get("file"), dict) for row in first):  # e621
            columns.add("md5")
        return columns, [(start, min(CHUNK, size - start)) for start in range(0, size, CHUNK)]
    raise UserError(f"{path}: a metadata table is one of .csv, .jsonl, .parquet")


def _key(path: Path, columns: set[str], wanted: Key | None) -> Key:
    found = [kind for kind, names in COLUMNS.items() if not columns.isdisjoint(names)]
    if wanted in found or (wanted is None and found):
        return wanted or found[0]
    if not columns:  # Nothing that can be read: every row will say so.
        return wanted or "file"
    needed = ", ".join(COLUMNS[wanted] if wanted else [name for names in COLUMNS.values() for name in names])
    raise UserError(
        f"{path}: no column says which picture a row speaks of; one of {needed} is needed, "
        f"there are: {', '.join(sorted(columns))}"
    )


def parse_shard(source: str, shard: Shard) -> None:
    """Write the part of one chunk."""
    (item,) = shard.items().to_pylist()
    root = Corpus(source).folder
    path = root / item["origin"] if root else Path(item["origin"])
    base = posixpath.dirname(item["origin"]) if not Path(item["origin"]).is_absolute() else ""
    with atomic_file(shard.part) as temporary, pq.ParquetWriter(temporary, POSTS, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for number, row in _read(path, item["chunk"]):
            about = {"origin": item["origin"], "state": item["state"], "chunk": item["chunk"], "kind": item["key"]}
            rows.append(about | {"place": number} | _post(row, item["key"], base, root))
            if len(rows) == GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, POSTS))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, POSTS))


def _post(row: dict[str, Any] | str, kind: Key, base: str, root: Path | None) -> dict[str, Any]:
    """The columns of one row."""
    if isinstance(row, str):
        return {"error": row}
    value = next((row[name] for name in COLUMNS[kind] if row.get(name) not in (None, "")), None)
    if kind == "md5" and isinstance(row.get("file"), dict):  # e621
        value = row["file"].get("md5")
    if not isinstance(value, str | int) or isinstance(value, bool):
        return {"error": f"the row names no {'file' if kind == 'file' else kind}"}
    key = clean(str(value))
    key = _locate(key, base, root) if kind == "file" else key.lower()
    excess = row.pop(_EXCESS, None)
    columns, wrong = parse({name: cell for name, cell in row.items() if name != "file" or kind != "file"})
    errors = (["the row has more cells than the header"] if excess else []) + wrong
    return columns | {"key": key, "metadata_error": "; ".join(errors) or None}


def _locate(name: str, base: str, root: Path | None) -> str:
    """The location of a file that a table names: relative to the table's folder if that lies in the source."""
    if name.startswith("/") and root is not None:
        return posixpath.relpath(name, root.resolve())
    return posixpath.normpath(posixpath.join(base, name))


def _read(path: Path, chunk: int) -> Iterable[Row]:
    """The rows of a chunk."""
    if path.suffix == ".csv":
        return _csv(path)
    return _parquet(path, chunk) if path.suffix == ".parquet" else _jsonl(path, chunk, CHUNK)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, restkey=_EXCESS)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, str(error)
                continue
            if row is None:
                return
            yield reader.line_num, row


def _jsonl(path: Path, start: int, size: int) -> Iterator[Row]:
    """The lines that begin in a range of bytes, whole."""
    with path.open("rb") as file:
        file.seek(max(start - 1, 0))
        if start > 0:
            file.readline()  # The rest of a line that began before, or just its end.
        while (place := file.tell()) < start + size and (line := file.readline()):
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            try:
                row = json.loads(line.decode("utf-8-sig", errors="replace"))
            except (ValueError, RecursionError) as error:
                row = f"not JSON: {error}"
            yield place, row if isinstance(row, dict | str) else "not a JSON object"


def _parquet(path: Path, group: int) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        before = sum(file.metadata.row_group(earlier).num_rows for earlier in range(group))
        for batch in file.iter_batches(row_groups=[group]):
            yield from enumerate(batch.to_pylist(), before)
            before += len(batch)


STAGE = Stage(settings=PostsSettings, version=3, run=run, incremental=True)
