"""The stage `ingest`: every file of the source is read once, decoded once, measured, and joined with its metadata.

One row per file, also for those that cannot be read: then `error` is a reason and `detail` says more. A file that
is new or changed since the last run is a new item of the work list; nothing else is opened again.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from curate.measure import measure
from curate.quiet import quiet_decoders
from curate.sources import sidecars
from curate.sources.folder import list_folder
from curate.sources.metadata import METADATA, parse
from shared.errors import UserError
from shared.files import atomic_file, os_error
from shared.images import MAX_PIXELS, Unreadable, decode
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.worklist import Shard, WorkList, process

MAX_BYTES = 1 << 30
"""Larger files (films that lie among the pictures) are not read into memory."""

KEYS = ("location", "stamp")

MEASURES = pa.schema(
    [
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("alpha", pa.bool_()),
        pa.field("frames", pa.int32()),
        pa.field("pixel_hash", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("sharpness", pa.float64()),
        pa.field("flatness", pa.float64()),
        pa.field("border", pa.float64()),
    ]
)
"""What is known about a picture from its bytes alone. Width and height are those of the upright picture."""

INGEST = pa.schema(
    [
        pa.field("location", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        *MEASURES,
        *METADATA,
        pa.field("metadata_error", pa.string()),
    ]
)


class IngestSettings(Settings):
    """How the source is read."""

    metadata: Path | None = None
    """A table (.csv, .jsonl, .parquet) with metadata. Default: metadata.csv, .jsonl or .parquet in the source."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Pictures with more pixels are not decoded: they would fill the memory."""
    shard_rows: PositiveInt = 1024
    """Files per shard: the unit of resume."""


def run(job: Job[IngestSettings]) -> str:
    """Process what is new in the source; returns a digest of what is in it now."""
    root, settings = Path(job.source), job.settings
    listing = list_folder(root, settings.metadata)
    work = WorkList(job.folder, KEYS, settings.shard_rows)
    work.extend(listing)
    process(work.shards(), partial(ingest_shard, root, settings.max_pixels), job.engine, "ingest", "files")
    return work.declare(listing)


def ingest_shard(root: Path, max_pixels: int, shard: Shard) -> None:
    """Write the part of one shard."""
    with quiet_decoders():
        rows = [ingest(root, max_pixels, item) for item in shard.items().to_pylist()]
    with atomic_file(shard.part) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, INGEST), temporary)


def ingest(root: Path, max_pixels: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one listed file. Raises UserError when the whole source has vanished."""
    row = {key: item[key] for key in (*KEYS, "error", "detail")} | read_metadata(root, item)
    if item["error"]:
        return row
    row["bytes"] = item["size"]
    try:
        with (root / item["location"]).open("rb") as file:
            state = os.fstat(file.fileno())
            if (state.st_size, state.st_mtime_ns) != (item["size"], item["mtime_ns"]):
                return row | {"error": "unreadable", "detail": "changed since it was listed"}
            if state.st_size > MAX_BYTES:
                row["image_id"] = hashlib.file_digest(file, "sha256").hexdigest()
                return row | {"error": "too_many_bytes", "detail": f"{state.st_size} is more than {MAX_BYTES} bytes"}
            data = file.read()
    except OSError as error:
        if not root.is_dir():
            raise UserError(f"{root}: the source has vanished; finished shards are kept") from None
        return row | {"error": "unreadable", "detail": os_error(error)}
    return row | read_picture(data, max_pixels)


def read_picture(data: bytes, max_pixels: int) -> dict[str, Any]:
    """The columns that depend on the bytes of a file alone."""
    image_id = hashlib.sha256(data).hexdigest()
    try:
        picture = decode(data, max_pixels)
    except Unreadable as error:
        return {"image_id": image_id, "error": error.reason, "detail": error.detail}
    return {
        "image_id": image_id,
        "format": picture.format,
        "mode": picture.mode,
        "alpha": picture.alpha,
        "frames": picture.frames,
    } | dataclasses.asdict(measure(picture.image))


def read_metadata(root: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata columns of a file: its sidecars before its row of the table, each filling in what is missing."""
    columns: dict[str, Any] = {}
    errors = [item["record_error"]] if item["record_error"] else []
    for location in item["sidecars"] or ():
        try:
            found, wrong = parse(sidecars.read(root / location))
        except (OSError, ValueError) as error:
            found, wrong = {}, [os_error(error) if isinstance(error, OSError) else str(error)]
        columns = found | columns
        errors += [f"{location}: {text}" for text in wrong]
    if item["record"]:
        found, wrong = parse(json.loads(item["record"]))
        columns = found | columns
        errors += [f"metadata table: {text}" for text in wrong]
    return columns | {"metadata_error": "; ".join(errors) or None}


STAGE = Stage(settings=IngestSettings, version=1, run=run, incremental=True)
