"""`finalize`: the manifest that a run would have written, from the shards alone."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.tiny_lumina import write_tiny_lumina
from shared.errors import UserError
from tests.train.cache.test_cache import files, flip, latent_parts, run
from tests.train.conftest import SETTINGS
from train.cache.finalize import finalize
from train.cache.reader import CacheReader


@pytest.mark.parametrize("areas", [(64,), (32, 64)])
def test_from_the_shards_alone(cached: Path, tiny_model: Path, areas: tuple[int, ...]):
    if areas != SETTINGS.areas:
        run(cached, tiny_model, areas=areas)
    before, identity = files(cached), CacheReader(cached).identity
    shutil.rmtree(cached / "cache/manifest")
    (cached / "cache/rejects.parquet").unlink()
    assert finalize(cached, SETTINGS.model_copy(update={"areas": areas})) == (identity, [])
    assert files(cached) == before


def test_shards_of_another_machine(cached: Path, tmp_path: Path):
    whole = files(cached)
    part = latent_parts(cached)[1]
    elsewhere = part.rename(tmp_path / part.name)
    _, missing = finalize(cached, SETTINGS)
    assert missing == [f"{part}: missing: 4 items of todo-00000.parquet are not encoded; run `cache-latents` again"]
    assert CacheReader(cached).images == 7
    shutil.move(elsewhere, part)
    assert finalize(cached, SETTINGS)[1] == []
    assert files(cached) == whole


def test_shards_of_two_models(cached: Path, tiny_model: Path, tmp_path: Path):
    before = files(cached)
    other = write_tiny_lumina(tmp_path / "other")
    config = other / "vae/config.json"
    config.write_text(config.read_text() + "\n")  # Other bytes: another model, as far as anybody can tell.
    run(cached, other)
    with pytest.raises(UserError, match="shards of 2 kinds; say which with --model") as raised:
        finalize(cached, SETTINGS)
    assert "\n  weights: expected " in str(raised.value)
    finalize(cached, SETTINGS, tiny_model)
    assert files(cached) | before == files(cached)


def test_no_shards(curated: Path, cached: Path):
    for work, settings in ((curated, SETTINGS), (cached, SETTINGS.model_copy(update={"areas": (64, 96)}))):
        with pytest.raises(UserError, match="run `cache-latents` first"):
            finalize(work, settings)


def test_a_damaged_id_is_not_taken_for_another(cached: Path):
    part = latent_parts(cached)[0]
    image_id = pq.read_table(part)["image_id"][2].as_py()
    flip(part, part.read_bytes().index(image_id.encode()) + 9, 1)
    with pytest.raises(UserError, match="delete that file and run `cache-latents`") as raised:
        finalize(cached, SETTINGS)
    assert str(part) in str(raised.value)
