"""From a step's number to its micro-batches, read ahead of the trainer by threads.

The loader has no state: `Loader.step(n)` is a function of the plan, the cache and n. What it draws for a
sample (caption, time, noise) is keyed by step and position in the global batch, so it does not depend on
the rank that computes the sample nor on the micro-batch it travels in.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import flow
from train.cache.reader import CacheReader
from train.data.plan import CAPTION, NOISE, TIME, Plan, assign, receipt
from train.data.random import normal, stream_key, uniform
from train.model.config import DiTConfig
from train.model.flops import training_flops
from train.model.packing import PackedBatch, pack, patchify

THREADS = 4


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed together."""

    clean: PackedBatch
    """Scaled latents and captions, with the times at which they will be noised."""
    noise: Tensor
    """Of the shape of `clean.patches`."""

    def pin(self) -> "MicroBatch":
        """A copy in page-locked memory, from which a GPU fetches without being waited for."""
        clean = replace(
            self.clean,
            text=self.clean.text.pin_memory(),
            patches=self.clean.patches.pin_memory(),
            timesteps=self.clean.timesteps.pin_memory(),
        )
        return MicroBatch(clean, self.noise.pin_memory())

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch on a device: float32, captions in the bfloat16 they are stored in."""
        return MicroBatch(self.clean.to(device), self.noise.to(device, non_blocking=True))


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimiser step."""

    number: int
    receipt: str
    """Hash of the samples of the whole global batch."""
    samples: int
    """Of the whole global batch."""
    flops: int
    """Of training on the whole global batch, floating-point operations."""
    micro_batches: tuple["Future[MicroBatch]", ...]


@dataclass(frozen=True)
class Draws:
    """What chance decides for each position of a global batch."""

    samples: NDArray[np.int64]
    captions: tuple[str | None, ...]
    """Caption variant; None is the empty caption."""
    times: NDArray[np.float32]


class Loader:
    """Steps of one rank."""

    def __init__(
        self,
        reader: CacheReader,
        plan: Plan,
        *,
        config: DiTConfig,
        caption_dropout: float,
        token_budget: int,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ) -> None:
        self._reader, self._plan, self._config = reader, plan, config
        self._caption_dropout, self._token_budget = caption_dropout, token_budget
        self._rank, self._ranks, self._pin = rank, ranks, pin
        # The official code shifts every sample by the resolution the run is set to, not by the sample's own.
        self._shift = flow.shift((reader.area / reader.multiple) ** 2)

    def draws(self, step: int) -> Draws:
        """Samples, captions and times of a step's global batch."""
        samples = self._plan.step(step)
        positions = np.arange(len(samples))
        chance = uniform(stream_key(self._plan.seed, CAPTION, step, positions), 2)
        numbers = normal(stream_key(self._plan.seed, TIME, step, positions), 1)[:, 0]
        return Draws(
            samples=samples,
            captions=tuple(self._caption(int(index), *pair) for index, pair in zip(samples, chance, strict=True)),
            times=flow.timesteps(torch.from_numpy(numbers), self._shift).numpy(),
        )

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Steps first .. last - 1; while one is trained on, the next is being made."""
        with ThreadPoolExecutor(THREADS, thread_name_prefix="loader") as pool:
            try:
                following = self._start(first, pool) if first < last else None
                for number in range(first, last):
                    current = following
                    following = self._start(number + 1, pool) if number + 1 < last else None
                    assert current is not None
                    yield current
            finally:
                pool.shutdown(cancel_futures=True)

    def _start(self, number: int, pool: ThreadPoolExecutor) -> Step:
        draws = self.draws(number)
        text = [self._reader.text_tokens(int(i), c) for i, c in zip(draws.samples, draws.captions, strict=True)]
        image = [int(tokens) for tokens in self._reader.image_tokens[draws.samples]]
        tokens = [t + i for t, i in zip(text, image, strict=True)]
        micro_batches = assign(tokens, self._ranks, self._token_budget)[self._rank]
        return Step(
            number=number,
            receipt=receipt(draws.samples),
            samples=len(tokens),
            flops=sum(training_flops(self._config, t, i) for t, i in zip(text, image, strict=True)),
            # An empty micro-batch has nothing to compute: the rank just has fewer of them.
            micro_batches=tuple(pool.submit(self._make, number, draws, micro) for micro in micro_batches if micro),
        )

    def _make(self, step: int, draws: Draws, positions: list[int]) -> MicroBatch:
        indices = [int(draws.samples[position]) for position in positions]
        latents = [self._reader.latent(index).float() for index in indices]
        noises = [self._noise(step, p, x.shape) for p, x in zip(positions, latents, strict=True)]
        texts = [self._reader.text(i, draws.captions[p]) for i, p in zip(indices, positions, strict=True)]
        patch = self._config.patch_size
        scaled = [(x - self._reader.shift_factor) * self._reader.scaling_factor for x in latents]
        clean = pack(scaled, texts, torch.from_numpy(draws.times[positions]), patch)
        batch = MicroBatch(clean, torch.cat([patchify(noise, patch) for noise in noises]))
        return batch.pin() if self._pin else batch

    def _noise(self, step: int, position: int, shape: torch.Size) -> Tensor:
        numbers = normal(stream_key(self._plan.seed, NOISE, step, position), shape.numel())
        return torch.from_numpy(numbers).view(shape)

    def _caption(self, index: int, drop: float, choice: float) -> str | None:
        variants = self._reader.variants(index)
        if drop < self._caption_dropout or not variants:
            return None
        return variants[int(choice * len(variants))]
