"""`cache-latents verify`: manifest and shards are, bit by bit, what was written, and nothing is missing.

Bytes first, then counts: of a file that is damaged nothing is counted.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.errors import UserError
from shared.files import file_sha256, os_error
from shared.progress import Meter
from shared.tensors import CorruptTensor, Page, pages, read_page
from train.cache.counts import miscounts
from train.cache.manifest import ABOUT, CacheLayout, frame_crc, identity_of, read_about

THREADS = 8
"""Shards read at once: neither reading nor the CRC holds Python's lock."""


def verify(work: Path) -> list[str]:
    """All problems of a finished cache, one readable line each; none: it is whole.

    A damaged tensor is named by file, row, image id and both sums. Raises UserError where there is no cache.
    """
    layout = CacheLayout(work)
    try:
        about = read_about(work)
    except UserError as error:
        if not (layout.root / ABOUT).exists():
            raise
        return [str(error)]
    problems, tables = _manifest(layout, about)
    shards = _shards(layout, about, tables)
    sizes = {file: _size(layout.root / file) for file in shards}
    broken: set[str] = set()
    with Meter("verify", sum(sizes.values()), "MB", scale=10**6) as meter, ThreadPoolExecutor(THREADS) as pool:
        checked = pool.map(lambda file: _shard(layout.root / file, shards[file].to_pylist()), shards)
        for file, found in zip(shards, checked, strict=True):
            problems += found
            if found:
                broken.add(file)
            meter.advance(sizes[file])
    return problems + (miscounts(work, about, tables, broken) if tables else [])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _manifest(layout: CacheLayout, about: dict[str, Any]) -> tuple[list[str], dict[str, pa.Table]]:
    """Problems of the files beside the shards; and the manifest's tables, none where they cannot be trusted."""
    problems, tables = [], {}
    for file, written in about["files"].items():
        path = layout.root / file
        try:
            found = file_sha256(path)
        except OSError as error:
            problems.append(f"{path}: {os_error(error)}")
            continue
        if found != written:
            problems.append(f"{path}: sha256 {found[:16]} where {written[:16]} was written")
        elif path.parent == layout.manifest:
            tables[path.stem] = pq.read_table(path)
    if len(tables) < 2:
        return [*problems, f"{layout.manifest}: damaged; `cache-latents finalize` writes it anew"], {}
    if (identity := identity_of(about, tables)) != about["identity"]:
        problems.append(f"{layout.manifest}: its identity is {identity} where {about['identity']} was written")
    return problems, tables


def _shards(layout: CacheLayout, about: dict[str, Any], tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Every shard, be it on disk or only in the manifest, with its rows of the manifest.

    Of a row `tensor` says whose it is.
    """
    folders = layout.lists(about["latents"], about["text"])
    parts = [part for folder in folders for part in sorted(folder.glob("part-*.parquet"))]
    return {str(part.relative_to(layout.root)): pa.table({}) for part in parts} | dict(_by_file(about, tables))


def _by_file(about: dict[str, Any], tables: dict[str, pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    shared = [{"tensor": name, **place} for name, place in about["shared"].items()]
    yield shared[0]["file"], pa.Table.from_pylist(shared)
    if not tables:
        return
    images = tables["latents"]["image_id"]
    for table, ids in ((tables["latents"], images), (tables["text"], images.take(tables["text"]["image"]))):
        places = table.select(["file", "row", "offset", "length", "crc", "frame"])
        places = places.append_column("tensor", pc.binary_join_element_wise("image", ids, " "))
        places = places.sort_by([("file", "ascending"), ("row", "ascending")])
        first = 0
        for found in places["file"].value_counts():  # In the order in which they occur.
            yield found["values"].as_py(), places.slice(first, found["counts"].as_py())
            first += found["counts"].as_py()


def _shard(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Problems of a shard: every tensor is read, also those of pictures that have left the dataset."""
    problems: list[str] = []
    places: dict[int, Page] = {}
    try:
        found = pages(path)
        places = dict(enumerate(found))
        if rows and (frame := frame_crc(path, found)) != rows[0]["frame"]:
            problems.append(
                f"{path}: not its tensors, but what surrounds them: "
                f"CRC {frame:08x} where {rows[0]['frame']:08x} was written"
            )
    except (CorruptTensor, OSError, ValueError) as error:  # ValueError: a column's name that is not UTF-8 any more.
        reason = os_error(error) if isinstance(error, OSError) else error
        problems.append(f"{path}: {reason}; {len(rows)} tensors of the manifest lie in it")
    # What the manifest says of a place counts, for the shard's own word is part of what is checked.
    listed = {row["row"]: Page(row["offset"], row["length"], row["crc"]) for row in rows}
    names = {row["row"]: row["tensor"] for row in rows}
    return problems + _tensors(path, places | listed, names)


def _tensors(path: Path, places: dict[int, Page], names: dict[int, str]) -> list[str]:
    """Tensors that are not what was written, by row. `names` says whose they are."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        return [f"{path} row {row}, {names[row]}: {os_error(error)}" for row in sorted(places)]
    problems = []
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        for row, page in sorted(places.items()):
            try:
                read_page(handle, page, f"{path} row {row}, {names.get(row) or _unlisted(path, row)}")
            except CorruptTensor as error:
                problems.append(str(error))
    finally:
        os.close(handle)
    return problems


def _unlisted(path: Path, row: int) -> str:
    """Whose tensor it is of which the manifest says nothing."""
    try:
        return f"image {pq.read_table(path, columns=['image_id'])['image_id'][row]}, not in the manifest"
    except (OSError, ValueError, pa.ArrowException):
        return "not in the manifest"
