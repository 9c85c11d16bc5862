"""`verify --reencode`: what is encoded again is what the cache holds, and another thing is told."""

from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.corpus import Corpus
from shared.errors import UserError
from tests.train.cache.test_cache import run
from train.cache import reencode
from train.cache.manifest import CacheLayout
from train.cache.reader import CacheReader
from train.cache.reencode import reencoded


def again(work: Path, model: Path, number: int = 99) -> list[str]:
    return reencoded(work, Corpus(str(work.parent / "pictures")), model, number)


def test_the_same(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    assert again(cached, tiny_model) == []
    monkeypatch.setattr(reencode, "TOLERANCE", {"float32": 0.0})
    reader = CacheReader(cached)
    # Rounding to bfloat16 differs: the comparison is a real one.
    assert len(again(cached, tiny_model)) >= reader.images
    assert len([line for line in again(cached, tiny_model, 1) if ", area 64: " in line]) == 1


def test_other_tensors_in_the_right_place(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    reader = CacheReader(cached)
    pairs = combinations(range(reader.images), 2)
    one, other = next(pair for pair in pairs if reader.latent(pair[0]).shape == reader.latent(pair[1]).shape)
    read, swapped = CacheReader.latent, {one: other, other: one}
    monkeypatch.setattr(CacheReader, "latent", lambda self, index: read(self, swapped.get(index, index)))
    problems = again(cached, tiny_model)
    assert sorted(problem.split(",")[0] for problem in problems) == [
        f"image {reader.image_id(index)}" for index in (one, other)
    ]
    assert all("encoded again it differs by " in problem for problem in problems)


def test_other_captions_and_pictures(cached: Path, tiny_model: Path):
    part = next((cached / "curated").iterdir())
    rows = pq.read_table(part).to_pylist()
    other = next(row for row in rows if row["captions"])
    other["captions"][0]["text"] = other["captions"][0]["text"].replace("1girl", "2boys")
    pq.write_table(pa.Table.from_pylist(rows), part)
    (cached.parent / "pictures" / "000.png").unlink()
    gone = next(row["image_id"] for row in rows if row["locations"] == ["000.png"])
    problems = again(cached, tiny_model)
    assert len(problems) == 2
    assert f"image {gone}, area 64: unreadable" in problems[0]
    assert f"image {other['image_id']}, caption tags: encoded again it " in problems[1]


def test_several_areas(cached: Path, tiny_model: Path):
    run(cached, tiny_model, areas=(32, 64))
    assert again(cached, tiny_model) == []
    place = pq.read_table(CacheLayout(cached).manifest / "latents.parquet").to_pylist()[0]
    path = CacheLayout(cached).root / place["file"]
    data = bytearray(path.read_bytes())
    data[place["offset"]] ^= 1
    path.write_bytes(data)
    (problem,) = again(cached, tiny_model)
    assert problem.startswith(f"image {place['image_id']}, area 32: ")
    assert "CRC" in problem


def test_another_model(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reencode, "vae_hash", lambda *_: "0123456789abcdef")
    with pytest.raises(UserError, match=r"latents\.weights: expected "):
        again(cached, tiny_model)
