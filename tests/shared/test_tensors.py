import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.tensors import (
    METADATA_KEY,
    ROW_GROUP,
    CorruptTensor,
    description,
    page_crc,
    pages,
    read_page,
    tensor_column,
    verified,
    write_shard,
)

# Columns with several leaves before the tensor, so that its leaf is not the field of the same number.
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("crop", pa.list_(pa.int32())),
        pa.field("size", pa.struct([pa.field("height", pa.int32()), pa.field("width", pa.int32())])),
        pa.field("latent", pa.large_binary(), nullable=False),
        pa.field("tokens", pa.int32()),
    ]
)
LENGTHS = (5, 0, 70_000, 1, 65_536, 4)


def make_rows(lengths: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "image_id": f"{i:064x}",
            "crop": [i] * (i % 3) if i % 5 else None,
            "size": {"height": i, "width": 2 * i},
            "latent": random.bytes(length),
            "tokens": i if i % 4 else None,
        }
        for i, length in enumerate(lengths)
    ]


def write(path: Path, rows: list[dict[str, Any]], cuts: Sequence[int] = ()) -> list[dict[str, Any]]:
    table = pa.Table.from_pylist(rows, SCHEMA)
    edges = [0, *sorted(cuts), len(rows)]
    batches = [pa.RecordBatch.from_pylist(rows[start:stop], SCHEMA) for start, stop in pairwise(edges)]
    assert sum(map(len, batches)) == len(table)
    write_shard(path, batches, SCHEMA, {"format": 1, "encoder": "vae"})
    return rows


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write(tmp_path / "part.parquet", make_rows(LENGTHS))
    return tmp_path / "part.parquet"


def test_pyarrow_reads_it(shard: Path) -> None:
    assert pq.read_table(shard, page_checksum_verification=True).to_pylist() == make_rows(LENGTHS)
    assert pq.read_schema(shard).equals(SCHEMA)


def test_duckdb_reads_it(shard: Path) -> None:
    found = duckdb.sql(f"SELECT * FROM '{shard}'")
    assert found.fetchall() == [tuple(row.values()) for row in make_rows(LENGTHS)]
    total = duckdb.sql(f"SELECT sum(octet_length(latent)) FROM '{shard}' WHERE size.width > 4").fetchall()
    assert total == [(sum(LENGTHS[3:]),)]


def test_datasets_reads_it(shard: Path, tmp_path: Path) -> None:
    found = datasets.Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == make_rows(LENGTHS)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 40), st.sampled_from([65_535, 65_536, 66_000])), max_size=40)
    | st.lists(st.integers(0, 9), min_size=ROW_GROUP - 1, max_size=2 * ROW_GROUP + 1),
    cuts=st.lists(st.integers(0, 20), max_size=4),
    seed=st.integers(0, 9),
)
def test_a_page_is_a_tensor(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cuts: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = make_rows(lengths, seed)
    write(folder / "cut", rows, [cut for cut in cuts if cut <= len(rows)])
    write(folder / "whole", rows)
    data = (folder / "cut").read_bytes()
    assert data == (folder / "whole").read_bytes()  # however the rows came

    table = pq.read_table(folder / "cut", page_checksum_verification=True)
    assert table.to_pylist() == rows
    groups = pq.read_metadata(folder / "cut").num_row_groups
    assert groups == -(-len(rows) // ROW_GROUP)
    found = pages(folder / "cut")
    assert list(verified(folder / "cut")) == found
    for page, row in zip(found, rows, strict=True):
        tensor = row["latent"]
        assert data[page.offset : page.offset + page.length] == tensor
        assert page.crc == zlib.crc32(struct.pack("<I", len(tensor)) + tensor) == page_crc(tensor)


def test_reading_one_tensor(shard: Path) -> None:
    handle = os.open(shard, os.O_RDONLY)
    try:
        found = [read_page(handle, page, "row") for page in pages(shard)]
    finally:
        os.close(handle)
    assert found == [row["latent"] for row in make_rows(LENGTHS)]


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from([0, 2, 3, 4, 5]), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, row: int, at: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("shards") / "part.parquet"
    write(path, make_rows(LENGTHS))
    page = pages(path)[row]
    flip(path, page.offset + int(at * page.length), 1 << bit)
    with pytest.raises(CorruptTensor, match=f"part.parquet row {row}: .*CRC [0-9a-f]{{8}} where {page.crc:08x} was"):
        list(verified(path))
    with pytest.raises(OSError, match="CRC"):  # the very sum that Parquet defines
        pq.read_table(path, page_checksum_verification=True)


def test_a_flipped_bit_around_the_tensors_never_gives_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    rows = write(path, make_rows((3, 5, 0)))
    whole, good = path.read_bytes(), pages(path)
    start = pq.read_metadata(path).row_group(0).column(4).data_page_offset
    found = 0
    for offset in range(start, good[-1].offset):  # page headers, lengths and tensors
        for bit in (0, 3, 7):
            path.write_bytes(whole)
            flip(path, offset, 1 << bit)
            try:
                list(verified(path))
                assert [path.read_bytes()[page.offset :][: page.length] for page in pages(path)] == [
                    row["latent"] for row in rows
                ]
            except CorruptTensor as error:
                found += 1
                assert "part.parquet row " in str(error)  # noqa: PT017
    for page in good:  # the lengths that other readers go by
        path.write_bytes(whole)
        flip(path, page.offset - 4, 1)
        with pytest.raises(CorruptTensor, match=r"part.parquet row"):
            pages(path)
    assert found > 100


def flip(path: Path, offset: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(shard: Path, share: float) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: int(share * len(data))])
    for read in (pages, description):
        with pytest.raises(CorruptTensor, match=r"part.parquet: truncated or not Parquet"):
            read(shard)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pages(tmp_path / "none.parquet")


OURS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "max_rows_per_page": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dictionary": True}, "row 0: .*no dictionary"),
        ({"max_rows_per_page": 2}, "row 0: .*one row per page"),
        ({"write_page_checksum": False}, "row 0: .*page checksums"),
        ({"data_page_version": "2.0"}, "row 0: .*not written by this project"),
        ({"use_byte_stream_split": False, "column_encoding": {"latent": "DELTA_LENGTH_BYTE_ARRAY"}}, "row 0: "),
        ({"compression": "zstd"}, r"column 'latent' is compressed \(ZSTD\)"),
    ],
)
def test_files_that_are_not_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "foreign.parquet"
    table = pa.Table.from_pylist(make_rows([8] * 4), SCHEMA)
    pq.write_table(table, path, **OURS)
    assert len(pages(path)) == 4
    pq.write_table(table, path, **(OURS | change))
    with pytest.raises(CorruptTensor, match=f"foreign.parquet.*{message}"):
        pages(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [b"x"], "b": [1]}), path, **OURS)
    with pytest.raises(CorruptTensor, match="0 non-null large_binary columns"):
        pages(path)
    for column in ("a", "b", "c"):  # nullable, not binary, absent
        with pytest.raises(CorruptTensor, match=f"no non-null binary column '{column}'"):
            pages(path, column)


def test_statistics_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    rows = make_rows([8] * 4)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, **(OURS | {"write_statistics": True}))
    assert len(list(verified(path))) == 4


def test_an_error_among_the_rows_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"

    def rows() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist(make_rows([9999] * 100), SCHEMA)
        written = [file.stat().st_size for file in tmp_path.iterdir()]
        assert written > [ROW_GROUP * 9999]  # memory holds one row group
        raise ConnectionError("the GPU is gone")

    with pytest.raises(ConnectionError, match="the GPU is gone"):
        write_shard(path, rows(), SCHEMA, {})
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_garbles_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Garbling(pq.ParquetWriter):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            flip(self.where, Path(self.where).read_bytes().index(b"needle"), 1)

    monkeypatch.setattr(pq, "ParquetWriter", Garbling)
    row = make_rows([0])[0] | {"latent": b"hay needle hay"}
    with pytest.raises(CorruptTensor, match="row 0"):
        write_shard(tmp_path / "part.parquet", [pa.RecordBatch.from_pylist([row], SCHEMA)], SCHEMA, {})
    assert list(tmp_path.iterdir()) == []


def test_the_description(shard: Path, tmp_path: Path) -> None:
    assert description(shard) == {"format": 1, "encoder": "vae"}
    assert METADATA_KEY in pq.read_metadata(shard).metadata
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(CorruptTensor, match=r"foreign.parquet: not a tensor shard of this project"):
        description(tmp_path / "foreign.parquet")


def test_a_shard_has_one_tensor_column() -> None:
    assert tensor_column(SCHEMA) == "latent"
    with pytest.raises(AssertionError):
        tensor_column(pa.schema([pa.field("latent", pa.large_binary())]))
