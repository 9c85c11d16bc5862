"""The stage `ingest`: every picture of the source is read once, decoded once and measured.

One row per picture, also for those that cannot be read: then `error` is a reason and `detail` says more. Files and tars
that are new or changed since the last run are new items of the work list; nothing else is opened again.
"""

import dataclasses
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import PositiveInt

from curate import measure
from curate.dedupe.descriptor import describe
from curate.quiet import quiet_decoders
from curate.sources import sidecars
from curate.sources.folder import TABLE_NAMES, list_source
from curate.sources.listing import LISTING, Found
from curate.sources.metadata import METADATA, parse
from curate.sources.tar import index
from shared.corpus import Corpus, member, state
from shared.errors import UserError
from shared.files import FULL, atomic_file, os_error
from shared.images import MAX_PIXELS, Unreadable
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.worklist import Shard, WorkList, process

MAX_BYTES = 1 << 30
"""Larger files (films that lie among the pictures) are not read into memory."""

GROUP_ROWS = 1024
"""Rows that are held in memory before they are written."""

KEYS = ("file", "stamp")

MEASURES = pa.schema(
    [
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("alpha", pa.bool_()),
        pa.field("frames", pa.int32()),
        pa.field("quality", pa.int32()),
        pa.field("phash", pa.uint64()),
        pa.field("sharpness", pa.float64()),
        pa.field("flatness", pa.float64()),
        pa.field("border", pa.float64()),
    ]
)
"""What is known about a picture from its bytes alone. Width and height are those of the upright picture; `quality` is
the quality factor of a JPEG."""

COPIES = pa.schema([pa.field("pixel_hash", pa.string()), pa.field("descriptor", pa.binary())])
"""What the search for copies needs beside the measures. The pixel hash is null but for nearly blank pictures: see
`curate.pixels`."""

INGEST = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("md5", pa.string()),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        *MEASURES,
        *COPIES,
        *METADATA,
        pa.field("metadata_error", pa.string()),
    ]
)

Row = dict[str, Any]


class IngestSettings(Settings):
    """How the source is read."""

    max_pixels: PositiveInt = MAX_PIXELS
    """Pictures with more pixels are not decoded: they would fill the memory."""
    md5: bool = False
    """Compute the MD5 of every file, to find its post in tables keyed by it where the file's name does not hold it."""
    shard_rows: PositiveInt = 1024
    """Files per shard, the unit of resume. A tar is a shard of its own."""


def run(job: Job[IngestSettings]) -> str:
    """Process what is new in the source; returns a digest of what is in it now."""
    corpus, settings = Corpus(job.source), job.settings
    work = WorkList(job.folder, KEYS, settings.shard_rows, weight="size")
    with spooled(list_source(corpus, frozenset(TABLE_NAMES)), job.folder / ".listing.tmp") as listing:
        work.extend(read_listing(listing, tars=True), shard_rows=1)
        work.extend(read_listing(listing, tars=False))
        function = partial(ingest_shard, corpus, settings)
        process(work.shards(), function, job.engine, "ingest", "MB", scale=1_000_000)
        with pq.ParquetFile(listing) as file:
            return work.declare(pa.RecordBatchReader.from_batches(LISTING, file.iter_batches()))


@contextmanager
def spooled(rows: pa.RecordBatchReader, path: Path) -> Iterator[Path]:
    """Rows as a temporary Parquet file: they may be more than memory holds, and are needed more than once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(path, rows.schema) as writer:
            for batch in rows:
                writer.write_batch(batch)
        yield path
    finally:
        path.unlink(missing_ok=True)


def read_listing(path: Path, tars: bool) -> pa.RecordBatchReader:
    """The tars of a spooled listing, or everything else."""

    def chosen() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                is_tar = pc.and_(pc.ends_with(batch["file"], ".tar"), pc.is_null(batch["error"]))
                yield batch.filter(is_tar if tars else pc.invert(is_tar))

    return pa.RecordBatchReader.from_batches(LISTING, chosen())


def ingest_shard(corpus: Corpus, settings: IngestSettings, shard: Shard) -> None:
    """Write the part of one shard."""
    rows: list[Row] = []
    with (
        quiet_decoders(),
        atomic_file(shard.part) as temporary,
        pq.ParquetWriter(temporary, INGEST, compression="zstd") as writer,
    ):
        for item in shard.items().to_pylist():
            for row in ingest(corpus, settings, item):
                rows.append({"file": item["file"], "stamp": item["stamp"]} | row)
                if len(rows) == GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, INGEST))
                    rows = []
        writer.write_table(pa.Table.from_pylist(rows, INGEST))


def ingest(corpus: Corpus, settings: IngestSettings, item: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one listed file. Raises UserError when the whole source has vanished."""
    file = item["file"]
    if item["error"]:
        yield {"location": file, "error": item["error"], "detail": item["detail"]}
        return
    try:
        if corpus.folder and state((corpus.folder / file).stat()) != item["state"]:
            yield {"location": file} | unreadable("changed since it was listed")
        elif file.endswith(".tar"):
            yield from ingest_tar(corpus, settings, item)
        else:
            found = Found(file, item["size"], sidecars=tuple(map(Found, item["sidecars"])))
            yield {"location": file} | picture(found, lambda one: corpus.read(one.name), settings)
    except OSError as error:
        if error.errno in (*FULL, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # This machine's trouble, not the picture's.
        if not corpus.exists():
            raise UserError(f"{corpus.root}: the source has vanished; finished shards are kept") from None
        yield {"location": file} | unreadable(os_error(error))


def ingest_tar(corpus: Corpus, settings: IngestSettings, item: Mapping[str, Any]) -> Iterator[Row]:
    """A row for every picture of a tar, for every download that failed, and for the tar if there is something wrong."""
    file = item["file"]
    for sidecar in item["sidecars"]:
        if sidecar.endswith(".parquet"):
            with corpus.on_disk(sidecar) as path:
                yield from failures(path)
    with corpus.on_disk(file) as path, path.open("rb", buffering=0) as handle:
        found = index(path)

        def read(one: Found) -> bytes:
            return os.pread(handle.fileno(), one.size, one.offset)

        for one in pictures(found.members):
            yield {"location": member(file, one.name, one.offset, one.size)} | picture(one, read, settings)
    if found.problem:
        yield {"location": file, "error": "damaged_tar", "detail": found.problem}


def pictures(members: Iterable[Found]) -> Iterator[Found]:
    """The members of a tar, metadata attached to its picture. A second member of one name is a row with an error."""
    first: dict[str, Found] = {}
    others: list[Found] = []
    for one in members:
        if first.setdefault(one.name, one) is not one:
            others.append(dataclasses.replace(one, error="duplicate_member", detail="another member has this name"))
    yield from sidecars.attach(first)
    yield from others


def picture(found: Found, read: Callable[[Found], bytes], settings: IngestSettings) -> Row:
    """The columns of one picture and its metadata. Raises OSError."""
    if found.error:
        return {"error": found.error, "detail": found.detail}
    row = read_metadata(found.sidecars, read) | {"bytes": found.size}
    if found.size > MAX_BYTES:
        return row | {"error": "too_many_bytes", "detail": f"{found.size} is more than {MAX_BYTES} bytes"}
    data = read(found)
    if len(data) != found.size:
        return row | unreadable(f"{len(data)} of {found.size} bytes could be read")
    row["md5"] = hashlib.md5(data, usedforsecurity=False).hexdigest() if settings.md5 else None
    return row | read_picture(data, settings.max_pixels)


def read_picture(data: bytes, max_pixels: int) -> Row:
    """The columns that depend on the bytes of a picture alone."""
    image_id = hashlib.sha256(data).hexdigest()
    try:
        found, working, measures = measure.read(data, max_pixels)
    except Unreadable as error:
        return {"image_id": image_id, "error": error.reason, "detail": error.detail}
    return {
        "image_id": image_id,
        "format": found.format,
        "mode": found.mode,
        "alpha": found.alpha,
        "frames": found.frames,
        "quality": found.quality,
        "descriptor": describe(working),
    } | vars(measures)


def read_metadata(beside: Iterable[Found], read: Callable[[Found], bytes]) -> Row:
    """The metadata columns from a picture's sidecars, each filling in what is missing."""
    columns: Row = {}
    errors: list[str] = []
    for sidecar in beside:
        try:
            found, wrong = parse(sidecars.parse(sidecar.name, read(sidecar)))
        except (OSError, ValueError) as error:
            found, wrong = {}, [os_error(error) if isinstance(error, OSError) else str(error)]
        columns = found | columns
        errors += [f"{sidecar.name}: {text}" for text in wrong]
    return columns | {"metadata_error": "; ".join(errors) or None}


def failures(path: Path) -> Iterator[Row]:
    """Rows for the downloads that failed, from the table that img2dataset writes beside a tar; others are ignored."""
    with pq.ParquetFile(path) as file:
        if not {"url", "status", "error_message"} <= set(file.schema_arrow.names):
            return
        for batch in file.iter_batches(columns=["url", "status", "error_message"]):
            for row in batch.to_pylist():
                if row["status"] != "success":
                    yield {"location": row["url"], "error": row["status"], "detail": row["error_message"]}


def unreadable(detail: str) -> Row:
    """The columns of what could not be read."""
    return {"error": "unreadable", "detail": detail}


STAGE = Stage(settings=IngestSettings, version=4, run=run, incremental=True)
