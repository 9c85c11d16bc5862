"""`cache-latents verify`: manifest and shards are, bit by bit, what was written."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.progress import Meter
from shared.tensors import CorruptTensor, Page, pages, read_page
from train.cache.manifest import CacheLayout, frame_crc, identity_of, read_about


def verify(work: Path) -> list[str]:
    """Problems found, one readable line each: file, row, image id and both sums. None: the cache is whole.

    A manifest that is not the one that was written is the only problem told: what it says of shards is worth nothing.
    """
    layout = CacheLayout(work)
    about = read_about(work)
    try:
        tables = {name: pq.read_table(layout.manifest / f"{name}.parquet") for name in ("latents", "text")}
        identity = identity_of(about, tables)
    except (OSError, ValueError, pa.ArrowException) as error:
        return [f"{layout.manifest}: cannot be read ({error})"]
    if identity != about["identity"]:
        return [f"{layout.manifest}: its identity is {identity} where {about['identity']} was written"]
    problems: list[str] = []
    with Meter("verify", about["images"] + about["captions"], "tensors") as meter:
        for file, rows in _by_file(about, tables):
            problems += _frame(layout.root / file, rows) + _tensors(layout.root / file, rows)
            meter.advance(len(rows))
    return problems


def _by_file(about: dict[str, Any], tables: dict[str, pa.Table]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each file's rows of the manifest; `tensor` says what a row's tensor is."""
    for name, row in about["shared"].items():
        yield row["file"], [{"tensor": name, **row}]
    images = tables["latents"]["image_id"]
    for table, ids in ((tables["latents"], images), (tables["text"], images.take(tables["text"]["image"]))):
        places = table.select(["file", "row", "offset", "length", "crc", "frame"]).append_column("image", ids)
        places = places.sort_by([("file", "ascending"), ("row", "ascending")])
        first = 0
        for found in places["file"].value_counts():  # In the order in which they occur.
            rows = places.slice(first, found["counts"].as_py()).to_pylist()
            yield found["values"].as_py(), [{"tensor": f"image {row['image']}", **row} for row in rows]
            first += len(rows)


def _frame(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Whether all bytes of a file beside its tensors are what was written."""
    written = rows[0]["frame"]
    try:
        found = frame_crc(path, pages(path))
    except (CorruptTensor, OSError, ValueError) as error:  # ValueError: a column's name that is not UTF-8 any more.
        return [f"{path}: {error}; {len(rows)} tensors of the manifest lie in it"]
    if found != written:
        return [f"{path}: not its tensors, but what surrounds them: CRC {found:08x} where {written:08x} was written"]
    return []


def _tensors(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Whether the tensors of a file are what was written."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return []  # Told already.
    problems = []
    for row in rows:
        page = Page(row["offset"], row["length"], row["crc"])
        try:
            read_page(handle, page, f"{path} row {row['row']}, {row['tensor']}")
        except CorruptTensor as error:
            problems.append(str(error))
    os.close(handle)
    return problems
