"""A miniature model and a small cached dataset, built once for all tests of `train`."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch._dynamo.utils import counters

from demo.tiny_lumina import write_tiny_lumina
from shared.corpus import Corpus
from train.cache.run import cache
from train.cache.settings import CacheSettings

SIZES = [(64, 64), (96, 48), (48, 80), (64, 64), (130, 50), (33, 47), (70, 70), (64, 64), (20, 90), (80, 64), (64, 48)]
SETTINGS = CacheSettings(areas=(64,), shard_rows=4, batch=2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lumina(tmp_path_factory.mktemp("model") / "tiny-lumina")


def add_pictures(work: Path, sizes: list[tuple[int, int]], first: int = 0) -> None:
    """Pictures and their curated rows, beside those that are there. Every third picture has no caption."""
    rng = np.random.default_rng(first)
    rows = []
    for number, (width, height) in enumerate(sizes, first):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        path = work.parent / "pictures" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        captions = [
            {"variant": "tags", "text": f"1girl, solo, {'blue hair, ' * (number % 5)}smile"},
            {"variant": "text", "text": f"A drawing of number {number}."},
        ]
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append({"image_id": image_id, "locations": [path.name], "captions": captions[: number % 3]})
    curated = work / "curated"
    curated.mkdir(parents=True, exist_ok=True)
    part = curated / f"part-{len(list(curated.iterdir())):05}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), part)
    document = {"source": str(work.parent / "pictures"), "test": {"stages": {}, "cache": SETTINGS.model_dump()}}
    (work / "pipeline.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    """A work directory with curated pictures and no cache."""
    work = tmp_path / "work"
    work.mkdir()
    add_pictures(work, SIZES)
    return work


@pytest.fixture(scope="session")
def cached_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    work = tmp_path_factory.mktemp("cached") / "work"
    work.mkdir()
    add_pictures(work, SIZES)
    cache(work, Corpus(str(work.parent / "pictures")), tiny_model, SETTINGS)
    return work


@pytest.fixture
def cached(tmp_path: Path, cached_once: Path) -> Path:
    """A work directory with a finished cache, for a test to change."""
    shutil.copytree(cached_once.parent, tmp_path / "copy")
    return tmp_path / "copy" / cached_once.name


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    """One that has compiled nothing yet, and leaves nothing behind; what it counts begins at zero."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
