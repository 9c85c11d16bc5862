"""What fetching writes: tars of pictures in webdataset's layout, and beside each a table of what failed.

    tar-00000-00000.tar        000017.png, 000017.json, ...: a picture and its metadata; the number is that of the row
    tar-00000-00000.parquet    FAILURES: the rows of which there is no picture

The table has the name and the columns of img2dataset's, whose tars are thus read in the same way. A tar comes
into sight whole and behind its table: where it is, both are. Its bytes depend on its rows alone.
"""

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.files import atomic_file

FAILURES = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string(), nullable=False),
        pa.field("transient", pa.bool_(), nullable=False),
    ]
)
"""`row` is the number in the tar; `url` says where the picture should have come from, or which row of the source has
none; `status` is a reason, always the same word; `transient` is true where another try may succeed."""

_MAGIC = (
    ("png", 0, b"\x89PNG"),
    ("jpg", 0, b"\xff\xd8\xff"),
    ("gif", 0, b"GIF8"),
    ("webp", 8, b"WEBP"),
    ("bmp", 0, b"BM"),
    ("avif", 4, b"ftypavif"),
    ("jxl", 0, b"\xff\x0a"),
    ("jxl", 4, b"JXL "),
)


@dataclass(frozen=True)
class Picture:
    """A row that was fetched."""

    data: bytes
    metadata: str
    """A JSON object."""


@dataclass(frozen=True)
class Failure:
    """A row of which there is no picture."""

    url: str
    reason: str
    detail: str
    transient: bool = False


def write_tar(path: Path, rows: Iterable[Picture | Failure]) -> int:
    """Write a tar and its table, in place of those that may be there; returns how many rows they have."""
    failures, number = [], -1
    with atomic_file(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row in enumerate(rows):
                if isinstance(row, Failure):
                    failures.append((number, row.url, row.reason, row.detail, row.transient))
                else:
                    _add(tar, f"{number:06}.{extension(row.data)}", row.data)
                    _add(tar, f"{number:06}.json", row.metadata.encode())
        path.unlink(missing_ok=True)  # Killed from here on, an old tar never stands beside a new table.
        columns = zip(*failures, strict=True) if failures else [[] for _ in FAILURES]
        with atomic_file(table_of(path)) as table:
            pq.write_table(pa.table([list(column) for column in columns], FAILURES), table)
    return number + 1


def table_of(tar: Path) -> Path:
    """The table beside a tar."""
    return tar.with_suffix(".parquet")


def read_failures(tar: Path) -> dict[int, Failure]:
    """What the table beside a tar says, by the row's number."""
    rows = pq.read_table(table_of(tar), schema=FAILURES).to_pylist()
    return {row["row"]: Failure(row["url"], row["status"], row["error_message"], row["transient"]) for row in rows}


def read_pictures(tar: Path) -> Iterator[tuple[int, bytes]]:
    """The pictures in a tar, each with its row's number."""
    with tarfile.open(tar) as file:
        for member in file:
            number, _, suffix = member.name.partition(".")
            content = file.extractfile(member)
            assert content is not None  # There are only regular files in our tars.
            if suffix != "json":
                yield int(number), content.read()


def extension(data: bytes) -> str:
    """The usual extension for a picture's bytes: for people and other readers, `ingest` looks at the bytes."""
    return next((name for name, at, magic in _MAGIC if data[at : at + len(magic)] == magic), "bin")


def to_json(values: Mapping[str, Any]) -> str:
    """Metadata as JSON, without nulls and without NaN, which is null in many tables."""
    given = {key: value for key, value in values.items() if value is not None and value == value}
    return json.dumps(given, default=str)


def fits_json(kind: pa.DataType) -> bool:
    """Whether values of a type can be metadata: anything but bytes, wherever they lie in it."""
    if isinstance(kind, pa.BaseExtensionType):
        return fits_json(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return fits_json(kind.value_type)
    if kind.num_fields:
        return all(fits_json(kind.field(number).type) for number in range(kind.num_fields))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return not any(is_kind(kind) for is_kind in binary)


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for leftover in [*folder.glob(".*.tmp"), *folder.glob(".list/.*.tmp")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # Its time, owner and mode are always the same.
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


class Spool:
    """Pictures by number, in a file that has no name and vanishes with the process."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._spans: dict[int, tuple[int, int]] = {}

    def add(self, number: int, data: bytes) -> None:
        """Keep a picture."""
        self._spans[number] = (self._file.seek(0, io.SEEK_END), len(data))
        self._file.write(data)

    def read(self, number: int) -> bytes:
        """A picture that was kept."""
        offset, size = self._spans[number]
        self._file.seek(offset)
        return self._file.read(size)

    def __contains__(self, number: int) -> bool:
        return number in self._spans

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
