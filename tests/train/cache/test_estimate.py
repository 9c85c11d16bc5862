"""`estimate`: what it says before is what the cache holds afterwards."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.train.cache.test_cache import latent_parts, run
from tests.train.conftest import SETTINGS, SIZES
from train.cache.estimate import Line, estimate
from train.cache.manifest import CacheLayout


@pytest.fixture
def measured(curated: Path) -> Path:
    """A curated dataset with the sizes that `curate run` writes down, and a picture too small for a latent."""
    part = next((curated / "curated").iterdir())
    rows = pq.read_table(part).to_pylist()
    for row, (width, height) in zip(rows, SIZES, strict=True):
        row |= {"width": width, "height": height}
    small = curated.parent / "pictures" / "small.png"
    Image.new("RGB", (9, 30)).save(small)
    image_id = hashlib.sha256(small.read_bytes()).hexdigest()
    rows.append({"image_id": image_id, "locations": [small.name], "captions": [], "width": 9, "height": 30})
    pq.write_table(pa.Table.from_pylist(rows), part)
    return curated


def lines(work: Path, model: Path, areas: tuple[int, ...] = (64,)) -> list[Line]:
    return estimate(work, str(model), SETTINGS.model_copy(update={"areas": areas}), 50, 800)


def test_bytes_are_those_of_the_cache(measured: Path, tiny_model: Path):
    before = lines(measured, tiny_model, (32, 64))
    run(measured, tiny_model, areas=(32, 64))
    manifest = CacheLayout(measured).manifest
    latents = pq.read_table(manifest / "latents.parquet").to_pylist()
    for area in (32, 64):
        written = sum(row["length"] for row in latents if row["area"] == area)
        assert sum(line.bytes for line in before if line.kind == f"latents {area} px") == written
        small = next(line for line in before if line.kind == f"latents {area} px" and line.size == "too small")
        assert (small.items, small.bytes, small.seconds) == (1, 0, 0)
    texts = pq.read_table(manifest / "text.parquet").to_pylist()
    for variant in ("tags", "text"):
        line = next(line for line in before if line.kind == f"captions {variant}")
        found = [row for row in texts if row["variant"] == variant]
        assert line.items == len(found)
        assert line.bytes == pytest.approx(sum(row["length"] for row in found))
        assert line.seconds == pytest.approx(sum(row["tokens"] for row in found) / 100 / 800)


def test_what_is_left(measured: Path, tiny_model: Path):
    run(measured, tiny_model)
    total = sum(line.bytes for line in lines(measured, tiny_model))
    assert all(
        line.cached == line.items and line.bytes_left == line.seconds == 0 for line in lines(measured, tiny_model)
    )
    items = pq.read_table(latent_parts(measured)[1])["image_id"].to_pylist()
    latent_parts(measured)[1].unlink()
    after = lines(measured, tiny_model)
    assert sum(line.items - line.cached for line in after) == len(items) == 4
    assert 0 < sum(line.bytes_left for line in after) < sum(line.bytes for line in after) == total


def test_time_goes_by_pixels(measured: Path, tiny_model: Path):
    found = lines(measured, tiny_model)
    pixels = sum(line.bytes for line in found if line.kind == "latents 64 px") // (16 * 2) * 64
    seconds = sum(line.seconds for line in found if line.kind == "latents 64 px")
    assert seconds == pytest.approx(pixels / 2**20 / 50)
