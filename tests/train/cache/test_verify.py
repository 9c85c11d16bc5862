"""`verify`: whatever has changed since it was written is found, and named."""

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.tensors import CorruptTensor
from tests.train.cache.test_cache import flip, latent_parts
from tests.train.conftest import SIZES, add_pictures
from train.cache.curated import open_curated
from train.cache.manifest import CacheLayout, finalise, read_about
from train.cache.reader import CacheReader
from train.cache.verify import verify

FLIPS = 12


def cache_files(work: Path) -> list[Path]:
    return sorted(path for path in (work / "cache").rglob("*") if path.is_file())


def test_a_flipped_bit_anywhere_in_any_file(cached: Path):
    assert verify(cached) == []
    files = cache_files(cached)
    assert {"manifest.json", "rejects.parquet", "shared.parquet", "todo-00000.parquet"} <= {path.name for path in files}
    for path in files:
        rng, size = random.Random(path.name), path.stat().st_size
        for offset in {0, size - 1, *(rng.randrange(size) for _ in range(FLIPS))}:
            bit = 1 << rng.randrange(8)
            flip(path, offset, bit)
            problems = verify(cached)
            assert problems, (path, offset, bit)
            assert all(str(path) in problem or f"{path.parent}: damaged" in problem for problem in problems)
            flip(path, offset, bit)
    assert verify(cached) == []


def test_a_flipped_bit_of_any_tensor_is_named_by_verify_and_by_the_reader(cached: Path):
    layout, rng = CacheLayout(cached), random.Random(1)
    images = pq.read_table(layout.manifest / "latents.parquet").to_pylist()
    texts = pq.read_table(layout.manifest / "text.parquet").to_pylist()
    for place in images + [text | images[text["image"]] | text for text in texts]:
        offset = place["offset"] + rng.randrange(place["length"])
        path = layout.root / place["file"]
        flip(path, offset)
        name = f"{path} row {place['row']}, image {place['image_id']}: "
        (problem,) = verify(cached)
        assert problem.startswith(name)
        assert f"where {place['crc']:08x} was written" in problem
        reader = CacheReader(cached)
        index = [reader.image_id(number) for number in range(reader.images)].index(place["image_id"])
        with pytest.raises(CorruptTensor) as raised:
            reader.text(index, place["variant"]) if "variant" in place else reader.latent(index)
        assert str(raised.value) == problem
        flip(path, offset)


def test_all_problems_are_told(cached: Path):
    layout = CacheLayout(cached)
    places = pq.read_table(layout.manifest / "latents.parquet").to_pylist()
    for place in places:
        flip(layout.root / place["file"], place["offset"])
    shared = read_about(cached)["shared"]["empty"]
    flip(layout.root / shared["file"], shared["offset"])
    problems = verify(cached)
    assert len(problems) == len(places) + 1
    for place in places:
        assert sum(place["image_id"] in problem for problem in problems) == 1
    assert sum("shared.parquet row 1, empty: " in problem for problem in problems) == 1


def test_missing_and_shorter_files(cached: Path):
    places = pq.read_table(CacheLayout(cached).manifest / "latents.parquet").to_pylist()
    first, second, third = latent_parts(cached)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    third.write_bytes(b"")
    problems = verify(cached)
    for part, count in ((first, 4), (second, 4), (third, 3)):
        lost = [place for place in places if place["file"].endswith(part.name)]
        assert len(lost) == count
        assert any(f"{part}: " in problem and f"{count} tensors" in problem for problem in problems)
        for place in lost:
            named = f"{part} row {place['row']}, image {place['image_id']}: "
            # Of the second file, the tensors themselves are all there.
            assert any(problem.startswith(named) for problem in problems) == (part != second)
    assert any(f"{first}: missing: 4 items of todo-00000.parquet are not encoded" in problem for problem in problems)
    reader = CacheReader(cached)
    gone = next(place for place in places if place["file"].endswith(first.name))
    index = [reader.image_id(number) for number in range(reader.images)].index(gone["image_id"])
    with pytest.raises(CorruptTensor, match=f"row {gone['row']}, image {gone['image_id']}: FileNotFoundError"):
        reader.latent(index)


def test_a_picture_that_left_the_dataset_is_checked_as_well(cached: Path):
    part = next((cached / "curated").iterdir())
    rows = pq.read_table(part)
    left = rows["image_id"][0].as_py()
    place = next(p for p in places_of(cached) if p["image_id"] == left)
    pq.write_table(rows.slice(1), part)
    refinalise(cached)
    assert verify(cached) == []
    path = CacheLayout(cached).root / place["file"]
    flip(path, place["offset"])
    (problem,) = verify(cached)
    assert f"{path} row {place['row']}, image {left}, not in the manifest: " in problem


def places_of(work: Path) -> list[dict[str, object]]:
    return pq.read_table(CacheLayout(work).manifest / "latents.parquet").to_pylist()


def refinalise(work: Path) -> None:
    about = read_about(work)
    with open_curated(work) as curated:
        finalise(work, about["latents"], about["text"], curated)


def test_another_shard_in_its_place(cached: Path):
    first, second, _ = latent_parts(cached)
    first.write_bytes(second.read_bytes())
    assert "what surrounds them" in verify(cached)[0]


def test_a_shard_that_nobody_asked_for(cached: Path):
    first = latent_parts(cached)[0]
    other = first.with_name("part-00007-00000.parquet")
    shutil.copy(first, other)
    assert verify(cached) == [f"{other}: is in no list of work"]


def test_curated_has_changed(cached: Path):
    part = next((cached / "curated").iterdir())
    rows = pq.read_table(part).to_pylist()
    gone = rows.pop(0)["image_id"]
    other = next(row for row in rows if row["captions"])
    other["captions"][0]["text"] += ", rain"
    silent = next(row for row in rows if not row["captions"])
    silent["captions"] = [{"variant": "tags", "text": "snow"}]
    pq.write_table(pa.Table.from_pylist(rows), part)
    add_pictures(cached, [(48, 48)], first=len(SIZES))
    new = pq.read_table(cached / "curated/part-00001.parquet")["image_id"][0].as_py()
    problems = verify(cached)
    told = {
        f"image {new} is neither in the manifest nor in rejects.parquet",
        f"image {gone}: is in the manifest, but not in curated any more",
        f"image {silent['image_id']}, caption tags: is not in the manifest",
        f"image {other['image_id']}: is of another text than caption tags has in curated now",
    }
    assert len(problems) == len(told)
    assert all(any(line in problem for problem in problems) for line in told)


def test_an_altered_manifest(cached: Path):
    path = CacheLayout(cached).manifest / "latents.parquet"
    rows = pq.read_table(path)
    pq.write_table(
        rows.set_column(rows.column_names.index("channels"), "channels", pa.array([15] * len(rows), pa.int32())), path
    )
    assert [str(path) in problem for problem in verify(cached)] == [True, False]
    path.write_bytes(b"")
    assert f"{path}: sha256 " in verify(cached)[0]
    path.unlink()
    assert f"{path}: FileNotFoundError" in verify(cached)[0]
