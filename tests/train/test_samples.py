"""The grids of a run: every prompt at every size, the same pictures that the sampler draws alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.cache.autoencoder import load_autoencoder
from train.cache.compute import compute_dtype, default_device
from train.cache.reader import CacheReader
from train.model.dit import Lumina2DiT
from train.model.weights import load_transformer
from train.prompts import embed
from train.sample import Picture, decode_latent, draw_latents
from train.samples import DEFAULT_PROMPTS, Sampler
from train.settings import SampleSettings

PROMPTS = ("1girl", "blue hair")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Lumina2DiT:
    return load_transformer(tiny_model / "transformer").float()


def drawn(settings: SampleSettings, tiny_model: Path, work: Path, model: Lumina2DiT) -> Image.Image:
    path = Sampler(settings, str(tiny_model), work, CacheReader(work)).draw(model, work / "grid.png")
    assert model.training
    with Image.open(path) as sheet:
        return sheet.convert("RGB")


def test_every_prompt_is_drawn_at_every_size(tiny_model: Path, cached: Path, model: Lumina2DiT):
    settings = SampleSettings(steps=2, seed=3, prompts=PROMPTS, sizes=("64x48", "32x96"))
    sheet = np.asarray(drawn(settings, tiny_model, cached, model))
    reader = CacheReader(cached)
    embeddings = embed(PROMPTS, str(tiny_model), cached, reader)
    vae = load_autoencoder(tiny_model / "vae", compute_dtype(default_device()))
    for number, prompt in enumerate(PROMPTS):
        for grid in ((3, 4), (6, 2)):
            (latent,) = draw_latents(model, [Picture(embeddings[prompt], grid, 3 + number)], reader.empty, settings)
            expected = np.asarray(decode_latent(vae, latent)).astype(int)
            assert expected.shape == (16 * grid[0], 16 * grid[1], 3)
            assert contains(sheet.astype(int), expected), (prompt, grid)


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a sheet has a picture somewhere, but for rounding."""
    height, width = picture.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
    return any(np.abs(window - picture).max() <= 1 for row in windows for window in row)


def test_captions_of_the_cache_are_drawn_at_its_area_by_default(tiny_model: Path, cached: Path, model: Lumina2DiT):
    few = drawn(SampleSettings(steps=1, prompts=PROMPTS), tiny_model, cached, model)
    many = drawn(SampleSettings(steps=1), tiny_model, cached, model)
    assert many.width * many.height > 64 * 64 * DEFAULT_PROMPTS
    assert few.width * few.height < many.width * many.height
