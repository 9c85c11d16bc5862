"""The loader: what a sample is shown does not depend on who computes it, nor with what."""

from pathlib import Path

import pytest
import torch

from train import flow
from train.cache.reader import CacheReader
from train.data.loader import Loader, MicroBatch
from train.data.plan import Plan
from train.model.config import DiTConfig


def samples(reader: CacheReader, model: Path, *, ranks: int, budget: int, steps: int = 2) -> dict[bytes, object]:
    """Everything the ranks together are shown in some steps, keyed by the noise, which names step and position."""
    plan = Plan(seed=3, samples=reader.images, batch=7)
    shown: dict[bytes, object] = {}
    for rank in range(ranks):
        loader = Loader(
            reader,
            plan,
            config=DiTConfig.from_folder(model / "transformer"),
            caption_dropout=0.3,
            token_budget=budget,
            rank=rank,
            ranks=ranks,
        )
        for step in loader.steps(0, steps):
            assert step.samples == 7
            for future in step.micro_batches:
                for sample in split(future.result()):
                    shown[sample[1].numpy().tobytes()] = [part.tolist() for part in sample]
    return shown


def split(batch: MicroBatch) -> list[tuple[torch.Tensor, ...]]:
    clean = batch.clean
    lengths = list(clean.image_lengths)
    return list(
        zip(
            clean.patches.split(lengths),
            batch.noise.split(lengths),
            clean.text.float().split(list(clean.text_lengths)),
            clean.timesteps.split(1),
            strict=True,
        )
    )


def test_ranks_and_micro_batches_change_nothing(cached: Path, tiny_model: Path):
    reader = CacheReader(cached)
    alone = samples(reader, tiny_model, ranks=1, budget=10_000)
    assert len(alone) == 14
    assert samples(reader, tiny_model, ranks=2, budget=120) == alone
    assert samples(reader, tiny_model, ranks=3, budget=1) == alone


def test_latents_are_shifted_and_scaled(cached: Path, tiny_model: Path):
    reader = CacheReader(cached)
    plan = Plan(seed=0, samples=reader.images, batch=reader.images)
    loader = Loader(
        reader, plan, config=DiTConfig.from_folder(tiny_model / "transformer"), caption_dropout=0, token_budget=10**6
    )
    (step,) = loader.steps(0, 1)
    clean = step.micro_batches[0].result().clean
    raw = torch.cat([reader.latent(int(i)).float().flatten() for i in plan.step(0)])
    expected = (raw.double() - reader.shift_factor) * reader.scaling_factor
    assert clean.patches.double().sum().item() == pytest.approx(expected.sum().item(), abs=1e-2)
    assert clean.patches.double().square().sum().item() == pytest.approx(expected.square().sum().item(), rel=1e-5)


def test_draws_follow_their_settings(cached: Path, tiny_model: Path):
    reader = CacheReader(cached)
    plan = Plan(seed=0, samples=reader.images, batch=4000)
    loader = Loader(
        reader, plan, config=DiTConfig.from_folder(tiny_model / "transformer"), caption_dropout=0.25, token_budget=1
    )
    draws = loader.draws(0)
    captioned = [c for i, c in zip(draws.samples, draws.captions, strict=True) if reader.variants(int(i))]
    share = sum(caption is None for caption in captioned) / len(captioned)
    assert share == pytest.approx(0.25, abs=0.03)
    two = [c for i, c in zip(draws.samples, draws.captions, strict=True) if c and len(reader.variants(int(i))) == 2]
    assert two.count("tags") / len(two) == pytest.approx(0.5, abs=0.05)
    m = flow.shift((64 / 16) ** 2)  # The cache's area, not each picture's.
    assert (1 - torch.from_numpy(draws.times)).median().item() == pytest.approx(
        torch.tensor(m).sigmoid().item(), abs=0.02
    )


def test_pictures_without_captions_are_shown_with_the_empty_one(cached: Path, tiny_model: Path):
    reader = CacheReader(cached)
    plan = Plan(seed=0, samples=reader.images, batch=reader.images)
    loader = Loader(
        reader, plan, config=DiTConfig.from_folder(tiny_model / "transformer"), caption_dropout=0, token_budget=10**6
    )
    draws = loader.draws(0)
    for index, caption in zip(draws.samples, draws.captions, strict=True):
        assert (caption is None) == (not reader.variants(int(index)))
