"""The listing: what a corpus holds right now, one row per file, before any picture is opened."""

from dataclasses import dataclass

import pyarrow as pa

LISTING = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("state", pa.string()),
        pa.field("sidecars", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`file` is relative to the source, with slashes; it is a picture, or a tar of pictures. `state` changes when the file
does (see `Corpus.state`), `stamp` when the file or any metadata beside it does, so (file, stamp) is one state of one
file. `sidecars` are its own metadata files. `error` (a reason) and `detail` are set where it is known already that
there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file, or something that could not be listed (then `error` is set)."""

    name: str
    """Relative to the source; within a tar, the name of a member."""
    size: int = 0
    state: str = ""
    sidecars: tuple["Found", ...] = ()
    error: str | None = None
    detail: str | None = None
    offset: int = 0
    """Of a member's bytes in its tar."""
