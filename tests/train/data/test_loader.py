"""The loader: what a sample is shown does not depend on who computes it, nor with what."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from train import flow
from train.cache.reader import CacheReader
from train.data.draws import caption, check_captions, draw
from train.data.loader import Loader, MicroBatch
from train.data.phases import Phase, plan_phases
from train.data.plan import Plan
from train.model.config import DiTConfig
from train.model.packing import patchify
from train.settings import TrainSettings

SETTINGS = TrainSettings(batch=7, seed=3, caption_dropout=0.3, token_budget=10_000)


@pytest.fixture
def loader(cached: Path, tiny_model: Path) -> Callable[..., Loader]:
    def make(rank: int = 0, ranks: int = 1, **changes: object) -> Loader:
        settings = SETTINGS.model_copy(update=changes)
        phases = plan_phases(cached, CacheReader(cached), settings)
        return Loader(phases, settings, DiTConfig.from_folder(tiny_model / "transformer"), rank=rank, ranks=ranks)

    return make


def samples(loader: Callable[..., Loader], ranks: int, budget: int) -> dict[bytes, object]:
    """All that the ranks together are shown in two steps, keyed by the noise, which names step, position and loss."""
    shown: dict[bytes, object] = {}
    for rank in range(ranks):
        for step in loader(rank, ranks, token_budget=budget).steps(0, 2):
            assert step.samples == 7
            for future in step.micro_batches:
                for sample in split(future.result()):
                    shown[sample[1].numpy().tobytes()] = [part.tolist() for part in sample]
    return shown


def split(batch: MicroBatch) -> list[tuple[torch.Tensor, ...]]:
    """Patches, noise, text, time and weight of each sample."""
    clean = batch.clean
    lengths = list(clean.image_lengths)
    return list(
        zip(
            clean.patches.split(lengths),
            batch.noise.split(lengths),
            clean.text.float().split(list(clean.text_lengths)),
            clean.timesteps.split(1),
            batch.weights.split(1),
            strict=True,
        )
    )


def test_ranks_and_micro_batches_change_nothing(loader: Callable[..., Loader]):
    alone = samples(loader, ranks=1, budget=10_000)
    assert 14 < len(alone) < 28  # A pooled one beside each picture, but for those too flat to be pooled.
    assert samples(loader, ranks=2, budget=120) == alone
    assert samples(loader, ranks=3, budget=1) == alone


def test_latents_are_shifted_and_scaled_and_pooled(cached: Path, loader: Callable[..., Loader]):
    reader = CacheReader(cached)
    (step,) = loader(batch=11, pooled_loss=0.5).steps(0, 1)
    batch = step.micro_batches[0].result()
    shown = split(batch)
    latents = []
    for index in step.draws.pictures:
        raw = reader.latent(int(index)).double()
        latents.append(((raw - reader.shift_factor) * reader.scaling_factor).float())
    for latent, (patches, *_, weight) in zip(latents, shown, strict=False):
        torch.testing.assert_close(patches, patchify(latent, 2), rtol=0, atol=1e-6)
        assert weight == 1
    wide = [latent for latent in latents if min(latent.shape[1:]) >= 8]
    assert len(wide) == len(shown) - 11 > 0
    for latent, (patches, noise, _, time, weight) in zip(wide, shown[11:], strict=True):
        channels, height, width = latent.shape
        height, width = height // 8 * 8, width // 8 * 8  # Whole patches of 2 x 2 pooled latents.
        blocks = latent[:, :height, :width].reshape(channels, height // 4, 4, width // 4, 4)
        torch.testing.assert_close(patches, patchify(blocks.mean(dim=(2, 4)), 2), rtol=0, atol=1e-6)
        assert weight == 0.5
        assert noise.shape == patches.shape
        assert time not in batch.clean.timesteps[:11]


def test_draws_follow_their_settings(cached: Path):
    reader = CacheReader(cached)
    settings = SETTINGS.model_copy(
        update={"batch": 4000, "caption_dropout": 0.25, "captions": {"tags": 3.0, "text": 1.0}}
    )
    draws = draw(plan_phases(cached, reader, settings).at(0), settings, 0)
    captioned = [c for i, c in zip(draws.pictures, draws.captions, strict=True) if reader.variants(int(i))]
    share = sum(caption is None for caption in captioned) / len(captioned)
    assert share == pytest.approx(0.25, abs=0.03)
    two = [c for i, c in zip(draws.pictures, draws.captions, strict=True) if c and len(reader.variants(int(i))) == 2]
    assert two.count("tags") / len(two) == pytest.approx(0.75, abs=0.05)
    m = flow.shift((64 / 16) ** 2)  # The cache's area, not each picture's.
    median = torch.tensor(m).sigmoid().item()
    for times in (draws.times, draws.pooled_times):
        assert (1 - torch.from_numpy(times)).median().item() == pytest.approx(median, abs=0.02)
    assert not np.isin(draws.times, draws.pooled_times).any()


def test_times_are_shifted_by_the_area_of_each_sample():
    small, large = (SimpleNamespace(area=area, multiple=16, variants=lambda _: []) for area in (256, 1024))
    plan = Plan(0, 4000, 4000)
    phase = Phase(0, [small, large], np.arange(4000), plan, 0, 1e-4)  # type: ignore[list-item]
    draws = draw(phase, SETTINGS, 0)
    for reader, m in ((small, 0.5), (large, 1.15)):  # As the official run has it.
        times = draws.times[[one is reader for one in draws.readers]]
        assert 1800 < len(times) < 2200
        assert np.median(np.log(times / (1 - times))) == pytest.approx(-m, abs=0.1)


@given(
    variants=st.lists(st.sampled_from("abcde"), unique=True),
    weights=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10)),
    choice=st.floats(0, 1, exclude_max=True),
)
def test_a_caption_is_one_that_the_picture_has(variants: list[str], weights: dict[str, float], choice: float):
    chosen = caption(variants, weights, choice)
    if not variants:
        assert chosen is None
    elif set(variants) & set(weights):
        assert chosen in set(variants) & set(weights)
    else:
        assert chosen == variants[int(choice * len(variants))]


def test_a_caption_variant_that_the_cache_does_not_have(cached: Path):
    check_captions(CacheReader(cached), ["tags"], "train.captions")
    with pytest.raises(UserError, match=r"^train\.captions: no 'poem'; the cache has the variants tags, text$"):
        check_captions(CacheReader(cached), ["tags", "poem"], "train.captions")


def test_pictures_without_captions_are_shown_with_the_empty_one(cached: Path):
    reader = CacheReader(cached)
    settings = SETTINGS.model_copy(update={"batch": reader.images, "caption_dropout": 0.0})
    draws = draw(plan_phases(cached, reader, settings).at(0), settings, 0)
    for index, chosen in zip(draws.pictures, draws.captions, strict=True):
        assert (chosen is None) == (not reader.variants(int(index)))
