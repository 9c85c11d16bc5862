"""From a step's number to its micro-batches, read ahead of the trainer by threads.

The loader has no state: a step is a function of the phases, the cache and its number.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

from train.cache.reader import CacheReader
from train.data.draws import Draws, draw
from train.data.phases import Phases
from train.data.plan import NOISE, POOLED_NOISE, assign, receipt
from train.data.random import Key, normal, stream_key
from train.model.config import DiTConfig
from train.model.flops import training_flops
from train.model.packing import Grid, PackedBatch, pack, patchify
from train.settings import TrainSettings

THREADS = 4
POOL = 4
"""Latents along a side that are one in the second loss."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed together. Behind those of the pictures come those of the pooled ones."""

    clean: PackedBatch
    """Scaled latents and captions, with the times at which they will be noised."""
    noise: Tensor
    """Of the shape of `clean.patches`."""
    weights: Tensor
    """(samples,) float32: of each sample's loss."""
    positions: tuple[int, ...]
    """In the global batch, of the pictures."""

    def pin(self) -> "MicroBatch":
        """A copy in page-locked memory, from which a GPU fetches without being waited for."""
        clean = replace(
            self.clean,
            text=self.clean.text.pin_memory(),
            patches=self.clean.patches.pin_memory(),
            timesteps=self.clean.timesteps.pin_memory(),
        )
        return replace(self, clean=clean, noise=self.noise.pin_memory(), weights=self.weights.pin_memory())

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch on a device: float32, captions in the bfloat16 they are stored in."""
        return replace(
            self,
            clean=self.clean.to(device),
            noise=self.noise.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimiser step."""

    number: int
    epoch: float
    """How often a picture of this phase had been seen before."""
    receipt: str
    """Hash of the samples of the whole global batch."""
    draws: Draws
    """Of the whole global batch."""
    flops: int
    """Of training on the whole global batch, floating-point operations."""
    learning_rate: float
    """Of the phase."""
    micro_batches: tuple["Future[MicroBatch]", ...]

    @property
    def samples(self) -> int:
        """Of the whole global batch."""
        return len(self.draws.pictures)


class Loader:
    """Steps of one rank."""

    def __init__(
        self,
        phases: Phases,
        settings: TrainSettings,
        config: DiTConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ) -> None:
        self._phases, self._settings, self._config = phases, settings, config
        self._rank, self._ranks, self._pin = rank, ranks, pin

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
        phase = self._phases.at(number)
        draws = draw(phase, self._settings, number)
        shapes = shapes_of(draws, self._settings)
        tokens = [sum(shape.tokens for shape in sample) for sample in shapes]
        micro_batches = assign(tokens, self._ranks, self._settings.token_budget)[self._rank]
        return Step(
            number=number,
            epoch=phase.epochs(number),
            receipt=receipt(draws.pictures),
            draws=draws,
            flops=sum(shape.flops(self._config) for sample in shapes for shape in sample),
            learning_rate=phase.learning_rate,
            # An empty micro-batch has nothing to compute: the rank just has fewer of them.
            micro_batches=tuple(pool.submit(self._make, number, draws, micro) for micro in micro_batches if micro),
        )

    def _make(self, step: int, draws: Draws, positions: Sequence[int]) -> MicroBatch:
        readers, indices = [draws.readers[p] for p in positions], [int(draws.pictures[p]) for p in positions]
        latents = [latent_of(reader, index) for reader, index in zip(readers, indices, strict=True)]
        texts = [r.text(i, draws.captions[p]) for r, i, p in zip(readers, indices, positions, strict=True)]
        grids = [
            pooled_grid(reader.grid(index), self._settings) for reader, index in zip(readers, indices, strict=True)
        ]
        small = [number for number, grid in enumerate(grids) if grid]
        pooled = [pool(latents[number], grids[number], self._config.patch_size) for number in small]
        seed = self._settings.seed
        noises = [noise_of(stream_key(seed, NOISE, step, p), x) for p, x in zip(positions, latents, strict=True)]
        noises += [
            noise_of(stream_key(seed, POOLED_NOISE, step, positions[n]), x) for n, x in zip(small, pooled, strict=True)
        ]
        times = [draws.times[p] for p in positions] + [draws.pooled_times[positions[number]] for number in small]
        weights = self._weights(indices)
        batch = micro_batch(
            latents + pooled,
            texts + [texts[number] for number in small],
            times,
            noises,
            self._config.patch_size,
            weights=torch.cat([weights, self._settings.pooled_loss * weights[small]]),
            positions=positions,
        )
        return batch.pin() if self._pin else batch

    def _weights(self, indices: Sequence[int]) -> Tensor:
        """Of the losses of pictures."""
        if self._phases.loss_weights is None:
            return torch.ones(len(indices))
        return torch.from_numpy(self._phases.loss_weights[indices]).float()


@dataclass(frozen=True)
class Shape:
    """Text and image tokens of what the model is shown at once."""

    text: int
    image: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.text + self.image

    def flops(self, config: DiTConfig) -> int:
        """Of training on it, floating-point operations."""
        return training_flops(config, self.text, self.image)


def shapes_of(draws: Draws, settings: TrainSettings) -> list[list[Shape]]:
    """Of each sample of a global batch: that of the picture, and that of the second loss."""
    return [
        sample_shapes(reader.text_tokens(index, caption), reader.grid(index), settings)
        for reader, index, caption in zip(draws.readers, draws.pictures.tolist(), draws.captions, strict=True)
    ]


def sample_shapes(text: int, grid: Grid, settings: TrainSettings) -> list[Shape]:
    """Those of a picture with so many text tokens and a grid of image tokens."""
    pooled = pooled_grid(grid, settings)
    return [Shape(text, rows * columns) for rows, columns in ([grid, pooled] if pooled else [grid])]


def pooled_grid(grid: Grid, settings: TrainSettings) -> Grid | None:
    """Rows and columns of a picture in the second loss, in tokens; None without that loss, or where it is too small."""
    rows, columns = grid[0] // POOL, grid[1] // POOL
    return (rows, columns) if settings.pooled_loss and rows and columns else None


def latent_of(reader: CacheReader, index: int) -> Tensor:
    """The latent (channels, height, width) of a picture as the model sees it, shifted and scaled, float32."""
    return (reader.latent(index).float() - reader.shift_factor) * reader.scaling_factor


def noise_of(key: Key, latent: Tensor) -> Tensor:
    """The standard normal numbers of a stream, in the shape of a latent, float32."""
    return torch.from_numpy(normal(key, latent.numel())).view(latent.shape)


def micro_batch(
    latents: Sequence[Tensor],
    texts: Sequence[Tensor],
    times: Sequence[float],
    noises: Sequence[Tensor],
    patch: int,
    *,
    weights: Tensor,
    positions: Sequence[int],
) -> MicroBatch:
    """Pack samples: latents and noises (channels, height, width), texts (tokens, width), weights (samples,)."""
    return MicroBatch(
        clean=pack(latents, texts, torch.tensor(times, dtype=torch.float32), patch),
        noise=torch.cat([patchify(noise, patch) for noise in noises]),
        weights=weights,
        positions=tuple(positions),
    )


def pool(latent: Tensor, grid: Grid | None, patch: int) -> Tensor:
    """The means of 4 x 4 latents (channels, height, width), cut to a grid of tokens."""
    assert grid
    means = F.avg_pool2d(latent[None], POOL)[0]
    return means[:, : grid[0] * patch, : grid[1] * patch]
