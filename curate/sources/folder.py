"""A folder, here or in an object store, with pictures, tars of pictures and metadata beside them, listed recursively.

Every file is a candidate, whatever its name says, except the metadata files. Files and folders whose names start
with a dot are skipped. Nothing else is passed over in silence: what cannot be listed is a row with an error. The
listing is a stream, one folder in memory at a time.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from curate.sources import sidecars
from curate.sources.listing import LISTING, Found
from shared.corpus import Corpus, file_of, remote_state, state
from shared.errors import UserError
from shared.files import os_error
from shared.fingerprint import fingerprint

BATCH_ROWS = 8192

TABLES = (".csv", ".jsonl", ".parquet")
"""Tables are no pictures, whatever else they are for, and may be too large to look into."""


TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables in the root with metadata of the whole source: see `curate.posts`. The layout of `datasets`' ImageFolder."""


def list_source(corpus: Corpus, tables: frozenset[str]) -> pa.RecordBatchReader:
    """The LISTING of a corpus, as a stream; `tables` are files with metadata, which are no part of it.

    Raises UserError (also while it is read) where the folder cannot be listed or is empty.
    """
    return pa.RecordBatchReader.from_batches(LISTING, _batches(corpus, tables))


def _batches(corpus: Corpus, tables: frozenset[str]) -> Iterator[pa.RecordBatch]:
    rows, empty = [], True
    for item in walk(corpus):
        if item.name in tables:
            continue
        rows.append(_row(item))
        if len(rows) == BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, LISTING)
            rows, empty = [], False
    if rows:
        yield pa.RecordBatch.from_pylist(rows, LISTING)
    elif empty:
        raise UserError(f"{corpus.root}: no files in this folder")


def walk(corpus: Corpus) -> Iterator[Found]:
    """Every file of the corpus that is not metadata of another, folder by folder."""
    for files in _local_folders(corpus.folder) if corpus.folder else _remote_folders(corpus):
        for item in sidecars.attach(files):
            yield _judge(item)


def _judge(item: Found) -> Found:
    """What can be told of a file by its name."""
    if item.error is None and item.name.endswith(TABLES):
        return Found(item.name, item.size, item.state, error="not_an_image", detail="a table; see posts.tables")
    if item.error is None and file_of(item.name) != item.name:
        detail = "the name looks like the address of a tar's member; rename it"
        return Found(item.name, item.size, item.state, error="unreadable", detail=detail)
    return item


def _local_folders(root: Path) -> Iterator[dict[str, Found]]:
    """The files of each folder by their names, sorted.

    Symbolic links are followed. A folder is listed once, however many links lead to it (and so loops end), under
    its own name where it has one inside `root`.
    """
    folders, seen = deque([""]), set()
    while folders:
        folder = folders.popleft()
        try:
            own = (root / folder).stat()
            entries = [entry for entry in os.scandir(root / folder) if not entry.name.startswith(".")]
        except OSError as error:
            if not folder:
                raise UserError(f"{root}: cannot be listed: {os_error(error)}") from None
            yield {folder: Found(folder, error="unreadable", detail=os_error(error))}
            continue
        if (own.st_dev, own.st_ino) in seen:
            continue
        seen.add((own.st_dev, own.st_ino))
        files: dict[str, Found] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            item = _look(folder, entry)
            if item is not None:
                files[item.name] = item
            elif entry.is_symlink():
                folders.append(f"{folder}{entry.name}/")
            else:
                folders.appendleft(f"{folder}{entry.name}/")
        yield files


def _look(folder: str, entry: os.DirEntry[str]) -> Found | None:
    """What a directory entry is; None for a folder to go into."""
    try:
        name = (folder + entry.name).encode().decode()
    except UnicodeEncodeError:
        printable = os.fsencode(folder + entry.name).decode(errors="backslashreplace")
        return Found(printable, error="unreadable", detail="the name is not UTF-8")
    try:
        found = entry.stat()
    except OSError as error:
        return Found(name, error="unreadable", detail=os_error(error))
    if stat.S_ISDIR(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        return Found(name, error="unreadable", detail="not a regular file")
    return Found(name, found.st_size, state(found))


def _remote_folders(corpus: Corpus) -> Iterator[dict[str, Found]]:
    corpus.files.invalidate_cache()  # It may remember what lay there in the run before.
    folders = deque([""])
    while folders:
        folder = folders.popleft()
        try:
            entries = corpus.files.ls(corpus.path(folder).rstrip("/"), detail=True)
        except OSError as error:
            raise UserError(f"{corpus.root}/{folder}: cannot be listed: {os_error(error)}") from None
        files: dict[str, Found] = {}
        for info in sorted(entries, key=lambda info: str(info["name"])):
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            if name.startswith(".") or not name or str(info["name"]).rstrip("/") == corpus.path(folder).rstrip("/"):
                continue
            if info["type"] == "directory":
                folders.append(f"{folder}{name}/")
            else:
                files[folder + name] = Found(folder + name, info["size"] or 0, remote_state(info))
        yield files


def _row(item: Found) -> dict[str, object]:
    states = [(sidecar.name, sidecar.state) for sidecar in item.sidecars]
    return {
        "file": item.name,
        "stamp": fingerprint([item.state, states, item.error, item.detail]),
        "size": item.size,
        "state": item.state,
        "sidecars": [sidecar.name for sidecar in item.sidecars],
        "error": item.error,
        "detail": item.detail,
    }
