"""One table with the metadata of a whole source: CSV, JSON lines or Parquet.

Found by itself as `metadata.csv`, `.jsonl` or `.parquet` in the source's root, the layout of `datasets`' ImageFolder.
"""

import csv
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.sources.metadata import clean
from shared.errors import UserError
from shared.fingerprint import fingerprint

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "file", "filename", "path", "location")
"""The first of these that a row has names its file."""

_EXCESS = "\0excess"


@dataclass(frozen=True)
class Record:
    """A row of the table."""

    values: str
    """As JSON."""
    error: str | None = None


@dataclass(frozen=True)
class MetadataTable:
    """The rows of a table by the location of the file they speak of."""

    location: str | None = None
    """Of the table itself, where it lies in the source."""
    records: dict[str, Record] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Rows that name no file, as rows of a listing: nothing is lost in silence."""


def find_table(root: Path, given: Path | None) -> MetadataTable:
    """Read the table `given`, else the one in `root`; an empty one where there is none.

    Raises UserError where the table is missing, of an unknown kind, unreadable, or names no files.
    """
    if given is not None:
        return read_table(given, root)
    own = [root / name for name in TABLE_NAMES if (root / name).is_file()]
    if len(own) > 1:
        raise UserError(
            f"{root}: holds {' and '.join(p.name for p in own)}; choose one with --set ingest.metadata=PATH"
        )
    return read_table(own[0], root) if own else MetadataTable()


def read_table(path: Path, root: Path) -> MetadataTable:
    """Read a table. Names of files are relative to its folder if that lies in `root`, else to `root`."""
    inside = path.resolve().is_relative_to(root.resolve())
    location = path.resolve().relative_to(root.resolve()).as_posix() if inside else None
    base = posixpath.dirname(location) if location else ""
    table = MetadataTable(location)
    columns: set[str] = set()
    for number, row in _rows(path):
        if isinstance(row, str):
            table.errors.append(_lost(path, number, row))
            continue
        columns |= row.keys()
        name = next((row[key] for key in FILE_COLUMNS if row.get(key)), None)
        if name is None:
            table.errors.append(_lost(path, number, "the row names no file"))
            continue
        _add(table, _locate(str(name), base, root), row)
    if columns and columns.isdisjoint(FILE_COLUMNS):
        raise UserError(
            f"{path}: no column names the files; one of {', '.join(FILE_COLUMNS)} is needed, "
            f"there are: {', '.join(sorted(columns - {_EXCESS}))}"
        )
    return table


def _locate(name: str, base: str, root: Path) -> str:
    if name.startswith("/"):
        return clean(posixpath.relpath(name, root.resolve()))
    return clean(posixpath.normpath(posixpath.join(base, name)))


def _add(table: MetadataTable, location: str, row: dict[str, Any]) -> None:
    if location in table.records:
        first = table.records[location].values
        table.records[location] = Record(first, "the metadata table has more than one row for this file")
        return
    error = "the row has more cells than the header" if row.pop(_EXCESS, None) else None
    given = {key: value for key, value in row.items() if value not in (None, "")}
    table.records[location] = Record(json.dumps(given, sort_keys=True, default=str), error)


def _lost(path: Path, number: int, detail: str) -> dict[str, Any]:
    row = {"location": f"{path.name}:{number}", "error": "bad_metadata", "detail": detail}
    return row | {"stamp": fingerprint(row)}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number and content of each row, or what is wrong with it. Numbers count lines, in Parquet rows, from 1."""
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: a metadata table is one of {', '.join(readers)}")
    try:
        yield from readers[path.suffix](path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read this metadata table: {error}") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
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


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = f"not JSON: {error}"
            yield number, row if isinstance(row, dict | str) else "not a JSON object"


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - goes on counting
                yield number, row
