"""`verify`: whatever has changed since it was written is found, and named."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.cache.test_cache import flip, latent_parts
from train.cache.manifest import CacheLayout, read_about
from train.cache.verify import verify


@pytest.mark.parametrize("pattern", ["latents/*/part-*-00001.parquet", "text/*/tags/part-*", "text/*/shared.parquet"])
def test_a_flipped_bit_anywhere(cached: Path, pattern: str):
    path = next((cached / "cache").glob(pattern))
    rng, size = random.Random(pattern), path.stat().st_size
    assert verify(cached) == []
    for _ in range(30):
        offset = rng.randrange(size)
        flip(path, offset)
        problems = verify(cached)
        assert problems, offset
        assert all(str(path) in problem for problem in problems)
        flip(path, offset)


def test_prefix_and_empty_caption_are_checked(cached: Path):
    place = read_about(cached)["shared"]["empty"]
    flip(CacheLayout(cached).root / place["file"], place["offset"])
    (problem,) = verify(cached)
    assert "shared.parquet row 1, empty: " in problem


def test_a_shorter_file(cached: Path):
    path = latent_parts(cached)[0]
    path.write_bytes(path.read_bytes()[:-100])
    problems = verify(cached)
    assert f"{path}: " in problems[0]
    assert "4 tensors" in problems[0]


def test_another_shard_in_its_place(cached: Path):
    first, second, _ = latent_parts(cached)
    first.write_bytes(second.read_bytes())
    assert "what surrounds them" in verify(cached)[0]


def test_an_altered_manifest(cached: Path):
    path = CacheLayout(cached).manifest / "latents.parquet"
    rows = pq.read_table(path)
    pq.write_table(
        rows.set_column(rows.column_names.index("channels"), "channels", pa.array([15] * len(rows), pa.int32())), path
    )
    (problem,) = verify(cached)
    assert read_about(cached)["identity"] in problem
    path.write_bytes(b"")
    (problem,) = verify(cached)
    assert "cannot be read" in problem
