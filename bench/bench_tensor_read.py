"""Random reads of single samples from a tensor shard: one `pread` with its CRC, against reading row groups.

    python bench/bench_tensor_read.py

Prints the milliseconds a sample takes, and the ratio. Files are warm: the disk is not what is measured.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared.tensors import ROW_GROUP, pages, read_page, write_shard

ROWS, BYTES = 512, 16 * 128 * 128 * 2  # Latents of 1024 px pictures in bfloat16.
SCHEMA = pa.schema(
    [pa.field("image_id", pa.string(), nullable=False), pa.field("latent", pa.large_binary(), nullable=False)]
)


def main() -> None:
    """Write one shard, then read the same random rows in each way."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        rows = ({"image_id": f"{i:064x}", "latent": rng.bytes(BYTES)} for i in range(ROWS))
        write_shard(path, (pa.RecordBatch.from_pylist([row], SCHEMA) for row in rows), SCHEMA, {})
        wanted = rng.integers(0, ROWS, 200).tolist()
        places, handle, file = pages(path), os.open(path, os.O_RDONLY), pq.ParquetFile(path)

        def from_group(row: int) -> bytes:
            group = file.read_row_group(row // ROW_GROUP, columns=["latent"])
            return bytes(group["latent"][row % ROW_GROUP].as_py())

        ours = milliseconds(lambda row: read_page(handle, places[row], f"row {row}"), wanted)
        theirs = milliseconds(from_group, wanted[:40])
        print(f"{BYTES / 2**20:.2f} MiB a sample, warm, one thread")
        print(f"pread and CRC         {ours:8.3f} ms")
        print(f"row group by pyarrow  {theirs:8.3f} ms   {theirs / ours:,.0f} times as long")


def milliseconds(read: Callable[[int], bytes], rows: list[int]) -> float:
    """Mean time of a read."""
    for row in rows[:5]:
        read(row)
    start = time.perf_counter()
    for row in rows:
        read(row)
    return (time.perf_counter() - start) / len(rows) * 1e3


if __name__ == "__main__":
    main()
