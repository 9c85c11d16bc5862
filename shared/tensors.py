"""Tensor shards: Parquet files in which every page of the tensor column is exactly one tensor.

Written with one row per page, plain encoding, no compression and page checksums, such a file is read by
DuckDB, pyarrow and `datasets` like any other, and is an array at the same time: a tensor is one `pread` at
a known offset, checked against the CRC that Parquet itself stores for the page.

A page of a non-null byte-array column holds a 4-byte little-endian length and the bytes. The CRC of the
Parquet format (the one of zlib) covers both.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.files import atomic_file

try:  # The same sum as zlib's, five times as fast.
    from zlib_ng.zlib_ng import crc32
except ModuleNotFoundError:
    from zlib import crc32

ROW_GROUP = 64
METADATA_KEY = b"illustrious-lu"
"""Key of the JSON description in the Parquet file's own metadata."""


class CorruptTensor(RuntimeError):  # noqa: N818 - what the tensor is
    """Bytes on disk are not what was written, or not what this project writes."""


@dataclass(frozen=True)
class Page:
    """Where one tensor lies in its file."""

    offset: int
    """Of the tensor's first byte."""
    length: int
    crc: int


def page_crc(tensor: bytes | bytearray | memoryview) -> int:
    """The CRC that Parquet stores for a page with this tensor."""
    return crc32(tensor, crc32(struct.pack("<I", len(tensor))))


def write_shard(path: Path, rows: Iterable[pa.RecordBatch], schema: pa.Schema, description: Mapping[str, Any]) -> None:
    """Write a shard atomically: temporary file, fsync, re-read with every CRC checked, rename.

    The tensor column is the one of type large_binary; it must not be nullable.
    """
    column = tensor_column(schema)
    metadata = {METADATA_KEY: json.dumps(description, sort_keys=True).encode()}
    with atomic_file(path) as temporary:
        count = 0
        with pq.ParquetWriter(
            temporary,
            schema.with_metadata(metadata),
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_index=True,
            write_page_checksum=True,
            # The page-size limit is looked at only every 1,024 values, so it is the row limit that cuts pages.
            max_rows_per_page=1,
        ) as writer:
            for table in _regroup(rows, schema):
                writer.write_table(table, row_group_size=ROW_GROUP)
                count += len(table)
        if count != sum(1 for _ in verified(temporary, column)):
            raise CorruptTensor(f"{path}: wrote {count} rows, but read back fewer")


def _regroup(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Collect batches into tables of ROW_GROUP rows: memory stays at one row group."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        while rows >= ROW_GROUP:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, ROW_GROUP)
            waiting = table.slice(ROW_GROUP).to_batches()
            rows -= ROW_GROUP
    if rows:
        yield pa.Table.from_batches(waiting, schema)


def tensor_column(schema: pa.Schema) -> str:
    """Name of the one tensor column of a shard's schema."""
    names = _tensor_columns(schema)
    assert len(names) == 1, f"a shard has exactly one non-null large_binary column, this one has {names}"
    return names[0]


def _tensor_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_large_binary(field.type) and not field.nullable]


def description(path: Path) -> dict[str, Any]:
    """The JSON description a shard was written with."""
    metadata = _footer(path).metadata or {}
    if METADATA_KEY not in metadata:
        raise CorruptTensor(f"{path}: not a tensor shard of this project (no {METADATA_KEY.decode()!r} metadata)")
    found: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return found


def pages(path: Path, column: str | None = None) -> list[Page]:
    """The pages of the tensor column in row order, read from the page headers alone.

    Raises CorruptTensor when the file is broken or its column was not written by `write_shard`.
    """
    metadata = _footer(path)
    column = column or _column_of(path, metadata.schema.to_arrow_schema())
    # Lists and structs have leaves of their own, so a leaf's position is not the field's.
    leaves = [metadata.schema.column(leaf) for leaf in range(metadata.num_columns)]
    index = next((i for i, leaf in enumerate(leaves) if leaf.path == column), None)
    if index is None or leaves[index].physical_type != "BYTE_ARRAY" or leaves[index].max_definition_level:
        raise CorruptTensor(f"{path}: has no non-null binary column {column!r}")
    result: list[Page] = []
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(index)
            if chunk.compression != "UNCOMPRESSED":
                raise CorruptTensor(f"{path}: column {column!r} is compressed ({chunk.compression})")
            position = chunk.data_page_offset
            for _ in range(chunk.num_values):
                page = _page(data, position)
                if page is None:
                    raise CorruptTensor(
                        f"{path} row {len(result)}: no page of one plain tensor with a checksum at {position}: broken, "
                        "or not written by this project (one row per page, no dictionary, page checksums)"
                    )
                result.append(page)
                position = page.offset + page.length
    return result


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CorruptTensor(f"{path}: truncated or not Parquet: {error}") from None


def _column_of(path: Path, schema: pa.Schema) -> str:
    names = _tensor_columns(schema)
    if len(names) != 1:
        raise CorruptTensor(f"{path}: not a tensor shard: {len(names)} non-null large_binary columns where 1 belongs")
    return names[0]


def verified(path: Path, column: str | None = None) -> Iterator[Page]:
    """The pages of a shard, each read and checked. Raises CorruptTensor naming the file and the row."""
    handle = os.open(path, os.O_RDONLY)
    try:
        for row, page in enumerate(pages(path, column)):
            read_page(handle, page, f"{path} row {row}")
            yield page
    finally:
        os.close(handle)


def read_page(handle: int, page: Page, name: str) -> bytes:
    """One tensor's bytes from an open file descriptor, CRC checked. `name` says in an error what it was."""
    tensor = os.pread(handle, page.length, page.offset)
    check_page(tensor, page, name)
    return tensor


def check_page(tensor: bytes | bytearray, page: Page, name: str) -> None:
    """Raises CorruptTensor with both sums where these bytes are not the page's. `name` says whose they are."""
    found = page_crc(tensor)
    if len(tensor) != page.length or found != page.crc:
        raise CorruptTensor(
            f"{name}: {len(tensor)} of {page.length} bytes at {page.offset}, "
            f"CRC {found:08x} where {page.crc:08x} was written"
        )


# Thrift's compact protocol, as far as Parquet's page headers use it (the format's parquet.thrift, PageHeader:
# 3 = compressed size, 4 = crc, 5 = data page header, in which 1 = number of values).

_TRUE, _FALSE, _I16, _I32, _I64, _BINARY, _STRUCT = 1, 2, 4, 5, 6, 8, 12


def _page(data: mmap.mmap, position: int) -> Page | None:
    """The page whose header is at `position`, or None when that is not a page with one tensor."""
    try:
        header, payload = _struct(data, position)
        size, crc = header[3], header[4]
        if header[5][1] == 1 and int.from_bytes(data[payload : payload + 4], "little") == size - 4:
            return Page(payload + 4, size - 4, crc & 0xFFFFFFFF)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        pass
    return None


def _struct(data: mmap.mmap, position: int) -> tuple[dict[int, Any], int]:
    """Parse one struct: its fields by id, and the position behind it."""
    fields: dict[int, Any] = {}
    identifier = 0
    while (byte := data[position]) != 0:
        position += 1
        delta, kind = byte >> 4, byte & 0x0F
        if delta:
            identifier += delta
        else:
            raw, position = _varint(data, position)
            identifier = _unzigzag(raw)
        if kind in (_TRUE, _FALSE):
            fields[identifier] = kind == _TRUE
        elif kind in (_I16, _I32, _I64):
            raw, position = _varint(data, position)
            fields[identifier] = _unzigzag(raw)
        elif kind == _BINARY:
            length, position = _varint(data, position)
            fields[identifier] = data[position : position + length]
            position += length
        elif kind == _STRUCT:
            fields[identifier], position = _struct(data, position)
        else:
            raise ValueError(f"unexpected Thrift type {kind} in a page header")
    return fields, position + 1


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
