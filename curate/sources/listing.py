"""The listing: what a corpus holds right now, one row per file, before any picture is opened."""

from dataclasses import dataclass

import pyarrow as pa

LISTING = pa.schema(
    [
        pa.field("location", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("sidecars", pa.list_(pa.string())),
        pa.field("record", pa.string()),
        pa.field("record_error", pa.string()),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`location` is relative to the source, with slashes. `stamp` changes when the file (by size and time) or any
metadata beside it does, so (location, stamp) is one state of one file. `sidecars` are the locations of its own
metadata files; `record` is its row of the metadata table as JSON. `error` (a reason) and `detail` are set where it
is known already that there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file, or something that could not be listed (then `error` is set)."""

    location: str
    size: int | None = None
    mtime_ns: int | None = None
    sidecars: tuple["Found", ...] = ()
    error: str | None = None
    detail: str | None = None
