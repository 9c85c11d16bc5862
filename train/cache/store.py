"""Where a cache lies: in a folder of this machine or in an object store. Either way it is read in parts.

`read(file, offset, length)` is what a store does. Threads may share one, and read from it at the same time.
"""

import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import fsspec

OPEN_FILES = 256
"""Files kept open: most systems allow a process 1,024, and ten million pictures lie in more."""


class Store(Protocol):
    """Files below a root."""

    root: str

    def read(self, file: str, offset: int, length: int) -> bytearray:
        """Bytes of a file; fewer where it ends before them. Raises OSError where it cannot be read."""
        ...

    def read_all(self, file: str) -> bytes:
        """All bytes of a file. Raises OSError where it cannot be read."""
        ...


def open_store(root: Path | str) -> Store:
    """The store at a path, or at an address that fsspec knows (s3://bucket/prefix, gs://..., memory://...)."""
    return RemoteStore(root) if isinstance(root, str) and "://" in root else LocalStore(Path(root))


def cache_store(work: Path | str) -> Store:
    """The store of a work directory's cache."""
    return open_store(f"{work.rstrip('/')}/cache" if isinstance(work, str) else work / "cache")


class LocalStore:
    """A folder: each read is one `preadv`, straight into the memory that is given back."""

    def __init__(self, root: Path) -> None:
        self.root, self._folder = str(root), root
        self._open = lru_cache(OPEN_FILES)(_OpenFile)

    def read(self, file: str, offset: int, length: int) -> bytearray:
        """See `Store`."""
        buffer = bytearray(length)
        # Held by a name while it is read: another thread's file may take its place among the open ones.
        opened = self._open(self._folder / file)
        read = os.preadv(opened.handle, [buffer], offset)
        return buffer if read == length else buffer[:read]

    def read_all(self, file: str) -> bytes:
        """See `Store`."""
        return (self._folder / file).read_bytes()


class _OpenFile:
    """A file descriptor that is closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "handle"):  # It has none where the file could not be opened.
            os.close(self.handle)


class RemoteStore:
    """An object store: each read is one request for a range. Requests of several threads run side by side."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files, self._path = fsspec.core.url_to_fs(root)

    def read(self, file: str, offset: int, length: int) -> bytearray:
        """See `Store`."""
        return bytearray(self._cat(file, start=offset, end=offset + length)) if length else bytearray()

    def read_all(self, file: str) -> bytes:
        """See `Store`."""
        return self._cat(file)

    def _cat(self, file: str, **part: int) -> bytes:
        try:
            data: bytes = self._files.cat_file(f"{self._path.rstrip('/')}/{file}", **part)
        except OSError:
            raise
        except Exception as error:  # Every store's client has errors of its own.
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
        return data
