"""Where pictures lie: in files of their own or inside tars, in a folder or in an object store.

A location names one picture of a corpus, as text:

    sub/frog.png                             a file, relative to the root of the corpus
    sub/00012.tar/frog.png@1536+48211        a member of a tar: its name, offset and size

A member is read with one request for just its bytes; nothing of a tar is ever unpacked.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from shared.files import os_error
from shared.images import Unreadable

_MEMBER = re.compile(r"(?P<file>.+\.tar)/(?P<name>.*)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)


def member(file: str, name: str, offset: int, size: int) -> str:
    """The location of a member of the tar `file`. The name is for people: what counts are the numbers."""
    unmistakable = name.replace(".tar/", ".tar%2F")
    return f"{file}/{unmistakable}@{offset}+{size}"


def file_of(location: str) -> str:
    """The file in which a picture lies: the picture's own, or the tar."""
    found = _MEMBER.fullmatch(location)
    return found["file"] if found else location


class Corpus:
    """The files below `root`: a folder, or an address that fsspec knows (s3://bucket/prefix, gs://..., memory://...)."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files, path = fsspec.core.url_to_fs(root)
        self._path = str(path).rstrip("/")
        self.folder = Path(self._path or "/") if "file" in _protocols(self.files) else None
        """The root as a path, where it is on this machine."""

    def __reduce__(self) -> tuple[type["Corpus"], tuple[str]]:
        return Corpus, (self.root,)

    def path(self, file: str) -> str:
        """The path of a file within its file system."""
        return f"{self._path}/{file}" if file else self._path

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self.folder.is_dir() if self.folder else bool(self.files.isdir(self._path))

    def read(self, location: str) -> bytes:
        """The bytes of a picture. Raises OSError where they cannot be had, all of them."""
        found = _MEMBER.fullmatch(location)
        if found is None:
            return self._read(location)
        offset, size = int(found["offset"]), int(found["size"])
        if size == 0:
            return b""
        data = self._read(found["file"], offset, size)
        if len(data) < size:
            raise OSError(errno.EIO, f"{found['file']} ends before this member does")
        return data

    def read_picture(self, image_id: str, locations: Sequence[str]) -> bytes:
        """The bytes of a picture, from the first of its copies that is still what it was.

        Raises Unreadable where there is none: unreadable, or changed.
        """
        problem = Unreadable("unreadable", "no location")
        for location in locations:
            try:
                data = self.read(location)
            except OSError as error:
                problem = Unreadable("unreadable", f"{location}: {os_error(error)}")
                continue
            if hashlib.sha256(data).hexdigest() == image_id:
                return data
            problem = Unreadable("changed", f"{location} is not the file any more that was curated")
        raise problem

    def _read(self, file: str, offset: int = 0, size: int | None = None) -> bytes:
        if self.folder is not None:
            with (self.folder / file).open("rb", buffering=0) as handle:
                handle.seek(offset)
                return handle.read(-1 if size is None else size)
        try:
            part = {} if size is None else {"start": offset, "end": offset + size}
            data: bytes = self.files.cat_file(self.path(file), **part)
        except OSError:
            raise
        except Exception as error:  # Every store's client has errors of its own.
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
        return data

    @contextmanager
    def on_disk(self, file: str) -> Iterator[Path]:
        """A file as one on this machine; what lies in an object store is copied for as long as it is needed."""
        if self.folder is not None:
            yield self.folder / file
            return
        with tempfile.NamedTemporaryFile(suffix=Path(file).suffix) as copy:
            with self.files.open(self.path(file), "rb", block_size=16 << 20, cache_type="readahead") as remote:
                shutil.copyfileobj(remote, copy, 16 << 20)
            copy.flush()
            yield Path(copy.name)


def state(found: os.stat_result) -> str:
    """Changes when a file on this machine does."""
    return f"{found.st_size} {found.st_mtime_ns}"


def remote_state(info: dict[str, Any]) -> str:
    """Changes when a file of an object store does; `info` is what fsspec's listing says of it."""
    marks = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
    return f"{info.get('size')} {next((info[mark] for mark in marks if mark in info), '')}"


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
