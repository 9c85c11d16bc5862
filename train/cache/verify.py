"""`cache-latents verify`: every tensor of the manifest is read and its CRC checked."""

import os
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from shared.progress import Meter
from shared.tensors import CorruptTensor, Page, read_page
from train.cache.manifest import CacheLayout, read_about


def verify(work: Path) -> list[str]:
    """Problems found, one readable line each: file, row, image id and both sums. None: the cache is whole."""
    layout = CacheLayout(work)
    about = read_about(work)
    images = pq.read_table(layout.manifest / "latents.parquet", columns=["image_id"])["image_id"]
    problems: list[str] = []
    with Meter("verify", about["images"] + about["captions"], "tensors") as meter:
        for name in ("latents", "text"):
            by_file: dict[str, list[dict[str, int]]] = defaultdict(list)
            for row in pq.read_table(layout.manifest / f"{name}.parquet").to_pylist():
                by_file[row["file"]].append(row)
            for file, rows in by_file.items():
                problems += _check(layout.root / file, rows, images)
                meter.advance(len(rows))
    return problems


def _check(path: Path, rows: list[dict[str, int]], images: list[object]) -> list[str]:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        return [f"{path}: {error.strerror}, {len(rows)} tensors are lost"]
    problems: list[str] = []
    for row in rows:
        image = row["image_id"] if "image_id" in row else images[row["image"]]
        try:
            read_page(handle, Page(row["offset"], row["length"], row["crc"]), f"{path} row {row['row']}, image {image}")
        except CorruptTensor as error:
            problems.append(str(error))
    os.close(handle)
    return problems
