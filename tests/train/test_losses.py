"""What a step minimises, against the official training loss, restated sample by sample through diffusers' model."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor
from torch.nn.functional import avg_pool2d

from train.cache.reader import CacheReader
from train.data.draws import draw
from train.data.phases import plan_phases
from train.data.plan import NOISE, POOLED_NOISE, POOLED_TIME, TIME
from train.data.random import normal, stream_key
from train.records import read
from train.run import start
from train.settings import OptimizerSettings, SampleSettings, TrainSettings

SETTINGS = TrainSettings(
    steps=1,
    batch=16,
    seed=5,
    token_budget=200,
    caption_dropout=0.3,
    # No gradient is so long: what is recorded is what AdamW sees.
    optimizer=OptimizerSettings(clip=1e9),
    samples=SampleSettings(steps=1, prompts=("1girl",)),
)


def official_time(number: float, tokens: float) -> float:
    """A standard normal number as a time: its noise fraction shifted as the official code writes it."""
    m = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    fraction = 1 - 1 / (1 + math.exp(-number))
    return 1 - math.exp(m) / (math.exp(m) + 1 / fraction - 1)


def official_loss(model: Lumina2Transformer2DModel, x1: Tensor, t: float, x0: Tensor, text: Tensor) -> Tensor:
    """The official loss of one sample at time t: data x1 and noise x0 (channels, height, width)."""
    xt, target = t * x1 + (1 - t) * x0, x1 - x0
    mask = torch.ones(1, len(text), dtype=torch.long)
    return (model(xt[None], torch.tensor([t]), text[None], mask).sample[0] - target).square().mean()


def test_a_step_is_the_official_one(cached: Path, tiny_model: Path):
    start(cached, str(tiny_model), "run", SETTINGS)
    (record,) = read(cached / "runs" / "run" / "metrics.jsonl")
    model = Lumina2Transformer2DModel.from_pretrained(tiny_model / "transformer").float()
    reader = CacheReader(cached)
    draws = draw(plan_phases(cached, reader, SETTINGS).at(0), SETTINGS, 0)
    shown = list(zip(draws.pictures.tolist(), draws.captions, strict=True))
    # Captions that are dropped, that are absent, of both variants; pictures of many shapes, some too flat for pooling.
    assert {"tags", "text"} < {caption for _, caption in shown}
    assert {bool(reader.variants(index)) for index, caption in shown if caption is None} == {True, False}
    assert len({reader.text_tokens(index, caption) for index, caption in shown}) > 4

    def numbers(purpose: int, position: int, *shape: int) -> Tensor:
        return torch.from_numpy(normal(stream_key(SETTINGS.seed, purpose, 0, position), math.prod(shape))).view(shape)

    def loss_of(position: int, data: Tensor, time: int, noise: int) -> Tensor:
        t = official_time(numbers(time, position, 1).item(), (64 / 16) ** 2)
        text = reader.text(*shown[position]).float()
        return official_loss(model, data, t, numbers(noise, position, *data.shape), text)

    large, small = [], []
    for position, (index, _) in enumerate(shown):
        latent = (reader.latent(index).float() - reader.shift_factor) * reader.scaling_factor
        large.append(loss_of(position, latent, TIME, NOISE))
        height, width = (side // 8 * 8 for side in latent.shape[1:])  # Whole patches of 2 x 2 pooled latents.
        if height and width:
            small.append(loss_of(position, avg_pool2d(latent[:, :height, :width], 4), POOLED_TIME, POOLED_NOISE))
    assert len(large) == 16 > len(small) > 4
    loss, loss_pooled = torch.stack(large).sum() / 16, torch.stack(small).sum() / 16
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["loss_pooled"] == pytest.approx(loss_pooled.item(), rel=1e-5)
    (loss + loss_pooled).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert record["grad_norm"] == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=1e-4)
