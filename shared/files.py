"""Files that are either whole or absent: everything this project writes goes through here."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The disk is full, or the share of it that this user may fill."""


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it becomes `path`, on error it vanishes.

    A caller that removes the temporary file leaves `path` as it is. Raises UserError when the disk is full.

    The name is one of its own, so that two writers never share a temporary file, be it on two machines, and
    starts with a dot, so that no reader's glob picks up a half-written one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with full_disk_named(path):
            yield temporary
            if temporary.exists():
                _fsync(temporary)
                temporary.replace(path)
                fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Raise UserError when the disk is full while `path` is written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{path}: {os.strerror(error.errno)}; what is finished is kept: make room and start the command again"
            ) from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder; on success it takes the place of `path`, on error it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        for written in (temporary, *temporary.rglob("*")):
            _fsync(written)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        fsync_folder(path.parent)
    finally:
        if old.exists() and not path.exists():  # The second rename failed.
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def os_error(error: OSError) -> str:
    """What went wrong, without the path: for tables that must not depend on where the corpus lies."""
    return f"{type(error).__name__}: {error.strerror or error}"
