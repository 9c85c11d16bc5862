"""Tars of pictures, as img2dataset, webdataset and the mirrors of boorus write them.

A tar is read in place: its headers say where the bytes of each member lie, and nothing is unpacked. Metadata are
members with the picture's name and another ending (see `curate.sources.sidecars`).
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from curate.sources.listing import Found

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Index:
    """The regular files in a tar, in its order; names need not be unique."""

    members: list[Found]
    problem: str | None
    """Why there may be more members than these, if so."""


def index(path: Path) -> Index:
    """Read the headers of a tar. Raises OSError; what is wrong with the tar itself is the index's `problem`."""
    members: list[Found] = []
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # It would keep them all.
                    if not entry.isdir():
                        members.append(_member(entry))
                end = tar.offset
        except tarfile.TarError as error:
            return Index(members, f"{error}, behind {len(members)} members")
        return Index(members, _ending(file, end, len(members)))


def _member(entry: tarfile.TarInfo) -> Found:
    name = entry.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if entry.isreg() and not entry.issparse():
        return Found(name, entry.size, offset=entry.offset_data)
    return Found(name, error="unreadable", detail="not a regular file", offset=entry.offset_data)


def _ending(file: BinaryIO, end: int, members: int) -> str | None:
    """What lies behind the last member: two blocks of zeros, in a tar that was written to its end."""
    size = file.seek(0, 2)
    file.seek(end)
    block = file.read(BLOCK)
    if block != bytes(BLOCK):
        what = "there is no readable header" if len(block) == BLOCK else "it ends"
        return f"behind {members} members, at byte {end} of {size}, {what}: truncated or damaged"
    while block := file.read(1 << 20):
        if block.count(0) < len(block):
            return f"data behind its end at byte {end}: tars that were joined must be read one by one"
    return None
