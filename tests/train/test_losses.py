"""What a step minimises: the number that the official training code has for the same samples, times and noise."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from shared.corpus import Corpus
from tests.train.conftest import add_pictures
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.cache.settings import CacheSettings
from train.data.plan import CAPTION, NOISE, POOLED_NOISE, POOLED_TIME, TIME, Plan
from train.data.random import normal, stream_key, uniform
from train.records import read
from train.run import start
from train.settings import SampleSettings, TrainSettings

AREA = 128
SIZES = [(128, 128), (160, 96), (96, 176), (64, 64), (130, 50), (150, 110), (40, 90), (112, 144)]
SETTINGS = TrainSettings(
    steps=1,
    batch=len(SIZES),
    seed=5,
    token_budget=200,
    caption_dropout=0.25,
    samples=SampleSettings(steps=1, prompts=("1girl",)),
)


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path) -> Path:
    """A cache of pictures of many shapes, large enough for the second loss to see more than one token."""
    work = tmp_path / "work"
    work.mkdir()
    add_pictures(work, SIZES)
    cache(work, Corpus(str(tmp_path / "pictures")), tiny_model, CacheSettings(areas=(AREA,)))
    return work


class Official:
    """`transport.training_losses` of Lumina-Image-2.0, restated: one sample after the other, none packed."""

    def __init__(self, reader: CacheReader, model: Lumina2Transformer2DModel) -> None:
        self._reader, self._model = reader, model

    def losses(self, position: int, index: int) -> tuple[Tensor, Tensor]:
        """Of the sample at a position of the first step: the mean squared error, and that of its pooled latent."""
        reader, text = self._reader, self._text(position, index)
        x1 = (reader.latent(index).float() - reader.shift_factor) * reader.scaling_factor
        loss = self._error(x1, text, position, TIME, NOISE)
        pooled = F.avg_pool2d(x1, 4)
        height, width = (side // 2 * 2 for side in pooled.shape[1:])  # The network takes patches of 2 x 2.
        if not height * width:
            return loss, torch.zeros(())
        return loss, self._error(pooled[:, :height, :width], text, position, POOLED_TIME, POOLED_NOISE)

    def _text(self, position: int, index: int) -> Tensor:
        drop, choice = uniform(stream_key(SETTINGS.seed, CAPTION, 0, position), 2)
        variants = self._reader.variants(index)
        kept = bool(variants) and drop >= SETTINGS.caption_dropout
        return self._reader.text(index, variants[int(choice * len(variants))] if kept else None).float()

    def _error(self, x1: Tensor, text: Tensor, position: int, time: int, noise: int) -> Tensor:
        x0 = torch.from_numpy(normal(stream_key(SETTINGS.seed, noise, 0, position), x1.numel())).view(x1.shape)
        t = self._time(float(normal(stream_key(SETTINGS.seed, time, 0, position), 1)[0]))
        xt, ut = t * x1 + (1 - t) * x0, x1 - x0
        mask = torch.ones(1, len(text), dtype=torch.long)
        prediction = self._model(xt[None], torch.tensor([t]), text[None], mask).sample[0]
        return (prediction - ut).square().mean()

    @staticmethod
    def _time(number: float) -> float:
        """sigmoid(number), its noise fraction shifted by the resolution the run is set to."""
        tokens = (AREA / 16) ** 2
        m = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        s = 1 - 1 / (1 + math.exp(-number))
        return 1 - math.exp(m) / (math.exp(m) + 1 / s - 1)


def test_a_step_has_the_loss_and_the_gradient_of_the_official_code(work: Path, tiny_model: Path):
    start(work, str(tiny_model), "run", SETTINGS)
    (record,) = read(work / "runs" / "run" / "metrics.jsonl")

    reader = CacheReader(work)
    model = Lumina2Transformer2DModel.from_pretrained(tiny_model / "transformer")
    official, order = Official(reader, model), Plan(SETTINGS.seed, len(SIZES), SETTINGS.batch).step(0)
    losses, pooled = zip(*(official.losses(*sample) for sample in enumerate(order.tolist())), strict=True)
    assert sum(map(bool, pooled)) == 6
    loss, second = torch.stack(losses).mean(), torch.stack(pooled).mean()
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["loss_pooled"] == pytest.approx(second.item(), rel=1e-5)

    (loss + second).backward()
    gradient = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert record["grad_norm"] == pytest.approx(gradient.item(), rel=1e-4)
