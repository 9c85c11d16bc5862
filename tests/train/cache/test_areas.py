"""Several areas, several devices: every picture decoded once, the same bytes whoever encodes them."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from shared.corpus import Corpus
from shared.errors import UserError
from tests.train.cache.test_cache import files
from tests.train.conftest import SETTINGS, SIZES, add_pictures
from train.cache import feeder
from train.cache.autoencoder import ImageEncoder
from train.cache.manifest import CacheLayout
from train.cache.pictures import prepare
from train.cache.reader import CacheReader
from train.cache.resolution import fit
from train.cache.run import Summary, cache
from train.cache.verify import verify

CPU = torch.device("cpu")


def run(work: Path, model: Path, areas: tuple[int, ...], devices: int = 1, workers: int = 1) -> Summary:
    settings = SETTINGS.model_copy(update={"areas": areas})
    return cache(work, Corpus(str(work.parent / "pictures")), model, settings, [CPU] * devices, workers)


def test_every_area_has_the_latents_of_its_own_run(curated: Path, cached: Path, tiny_model: Path):
    run(curated, tiny_model, (32, 64))
    small, large = (CacheReader(curated, area=area) for area in (32, 64))
    alone = CacheReader(cached)
    assert CacheReader(curated).area == 64
    assert small.images == large.images == alone.images == len(SIZES)
    encoder = ImageEncoder(tiny_model, CPU)
    locations = {row["image_id"]: row["locations"] for row in pq.read_table(curated / "curated").to_pylist()}
    for index in range(alone.images):
        assert small.image_id(index) == large.image_id(index) == alone.image_id(index)
        assert torch.equal(large.latent(index), alone.latent(index))
        image_id = alone.image_id(index)
        picture = prepare(Corpus(str(curated.parent / "pictures")), image_id, locations[image_id], 32, 16)
        expected = encoder.encode([picture.pixels])[0]
        assert picture.pixels.shape[0] * picture.pixels.shape[1] <= 32**2
        # One unit in the last place of bfloat16: other batches, other sums.
        torch.testing.assert_close(small.latent(index).float(), expected, atol=1e-4, rtol=2**-7)
        assert small.variants(index) == large.variants(index) == alone.variants(index)
    assert not verify(curated)


def test_a_picture_is_decoded_once_for_all_areas(curated: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    seen: Counter[int] = Counter()
    decode = feeder.decode

    def counting(data: bytes):
        seen[hash(data)] += 1
        return decode(data)

    monkeypatch.setattr(feeder, "decode", counting)
    run(curated, tiny_model, (32, 48, 64))
    assert set(seen.values()) == {1}
    run(curated, tiny_model, (32, 40, 48, 64))
    assert set(seen.values()) == {2}, "only the new area is encoded"
    add_pictures(curated, [(64, 80), (48, 48)], first=len(SIZES))
    run(curated, tiny_model, (32, 40, 48, 64))
    assert sorted(seen.values()) == [1, 1] + [2] * len(SIZES)


def test_the_same_bytes_for_any_workers_and_devices_and_order_of_areas(curated: Path, tiny_model: Path, tmp_path: Path):
    run(curated, tiny_model, (32, 64))
    expected = files(curated)
    for number, (devices, workers) in enumerate([(2, 1), (3, 2)]):
        work = tmp_path / str(number) / "work"
        work.mkdir(parents=True)
        add_pictures(work, SIZES)
        run(work, tiny_model, (32, 64), devices, workers)
        assert files(work) == expected


def test_an_area_that_comes_later_or_lacks_shards(curated: Path, tiny_model: Path):
    run(curated, tiny_model, (64,))
    before = files(curated)
    run(curated, tiny_model, (32, 64))
    both = files(curated)
    assert {name: digest for name, digest in before.items() if "part-" in name}.items() <= both.items()
    next((curated / "cache").glob("latents/*/part-00000-00001.parquet")).unlink()
    run(curated, tiny_model, (32, 64))
    assert files(curated) == both


def test_an_area_that_is_not_there(cached: Path):
    with pytest.raises(UserError, match=r"areas \[64\], none of 48; .*cache.areas=\[48, 64\]"):
        CacheReader(cached, area=48)


def test_rejects_stand_once(curated: Path, tiny_model: Path):
    add_pictures(curated, [(12, 90)], first=50)
    (curated.parent / "pictures" / "001.png").unlink()
    result = run(curated, tiny_model, (32, 64))
    assert result.rejects == {"too_small": 1, "unreadable": 1}
    assert len(pq.read_table(CacheLayout(curated).rejects)) == 2
    assert CacheReader(curated, area=32).images == CacheReader(curated, area=64).images == len(SIZES) - 1


def test_too_little_shared_memory_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(UserError, match=r"--shm-size\) or encode fewer areas at once \(cache\.areas\)"):
        feeder.Feeder(Corpus(str(tmp_path)), [32, 64], 16, 1, 2)


def test_feeder_gives_what_prepare_gives(tmp_path: Path):
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (70 + n, 90, 3), np.uint8)) for n in range(9)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    corpus = Corpus(str(tmp_path))
    items = [{"image_id": sha(tmp_path / f"{n}.png"), "locations": [f"{n}.png"]} for n in range(9)]
    with feeder.Feeder(corpus, [32, 64], 16, 1, 2) as feeding:
        waiting = [feeding.feed(item, [64, 32]) for item in items[: feeding.ahead]]
        found = [feeding.take(one) for one in waiting]
    for image, item, pictures in zip(images, items, found, strict=False):
        assert isinstance(pictures, list)
        for area, picture in zip((64, 32), pictures, strict=True):
            expected = prepare(corpus, item["image_id"], item["locations"], area, 16)
            assert np.array_equal(picture.pixels, expected.pixels)
            assert picture.fit == fit(*image.size, area, 16)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
