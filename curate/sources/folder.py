"""A folder of pictures with metadata beside them, listed recursively.

Every file is a candidate, whatever its name says, except the metadata files. Files and folders whose names start
with a dot are skipped. Nothing is passed over in silence: what cannot be listed is a row with an error.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.sources import sidecars
from curate.sources.listing import LISTING, Found
from curate.sources.table import TABLE_NAMES, MetadataTable, find_table
from shared.errors import UserError
from shared.files import os_error
from shared.fingerprint import fingerprint


def list_folder(root: Path, metadata: Path | None) -> pa.Table:
    """The LISTING of `root`, sorted by location. `metadata` is a table to use instead of the root's own.

    Raises UserError where the folder cannot be listed or is empty, or the metadata table cannot be used.
    """
    table = find_table(root, metadata)
    tables = {*TABLE_NAMES, table.location}
    found = {item.location: item for item in walk(root) if item.location not in tables}
    if not found:
        raise UserError(f"{root}: no files in this folder")
    for location in table.records.keys() - found.keys():
        detail = "the metadata table names this file, but it is not in the source"
        found[location] = Found(location, error="missing_file", detail=detail)
    rows = [_row(found[location], table) for location in sorted(found)]
    return pa.Table.from_pylist(rows + table.errors, LISTING)


def walk(root: Path) -> Iterator[Found]:
    """Every file below `root` that is not metadata of another, folder by folder.

    Symbolic links are followed. A folder is listed once, however many links lead to it (and so loops end), under
    its own name where it has one inside `root`.
    """
    folders, seen = deque([""]), set()
    while folders:
        folder = folders.popleft()
        try:
            state = (root / folder).stat()
            entries = [entry for entry in os.scandir(root / folder) if not entry.name.startswith(".")]
        except OSError as error:
            if not folder:
                raise UserError(f"{root}: cannot be listed: {os_error(error)}") from None
            yield Found(folder, error="unreadable", detail=os_error(error))
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        files: dict[str, Found] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            item = _look(folder, entry)
            if item is not None:
                files[entry.name] = item
            elif entry.is_symlink():
                folders.append(f"{folder}{entry.name}/")
            else:
                folders.appendleft(f"{folder}{entry.name}/")
        yield from sidecars.attach(files)


def _look(folder: str, entry: os.DirEntry[str]) -> Found | None:
    """What a directory entry is; None for a folder to go into."""
    try:
        location = (folder + entry.name).encode().decode()
    except UnicodeEncodeError:
        printable = os.fsencode(folder + entry.name).decode(errors="backslashreplace")
        return Found(printable, error="unreadable", detail="the name is not UTF-8")
    try:
        state = entry.stat()
    except OSError as error:
        return Found(location, error="unreadable", detail=os_error(error))
    if stat.S_ISDIR(state.st_mode):
        return None
    if not stat.S_ISREG(state.st_mode):
        return Found(location, error="unreadable", detail="not a regular file")
    return Found(location, state.st_size, state.st_mtime_ns)


def _row(item: Found, table: MetadataTable) -> dict[str, Any]:
    record = table.records.get(item.location)
    row = {
        "location": item.location,
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "sidecars": [sidecar.location for sidecar in item.sidecars],
        "record": record.values if record else None,
        "record_error": record.error if record else None,
        "error": item.error,
        "detail": item.detail,
    }
    states = [(sidecar.size, sidecar.mtime_ns) for sidecar in item.sidecars]
    return row | {"stamp": fingerprint([row, states])}
