"""What chance decides for a step: a function of the seed, the step and the position in the global batch, so it does not
depend on the rank that computes a sample nor on the micro-batch it travels in.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import UserError
from train import flow
from train.cache.reader import CacheReader
from train.data.phases import Phase
from train.data.plan import AREA, CAPTION, POOLED_TIME, TIME
from train.data.random import normal, stream_key, uniform
from train.settings import TrainSettings


@dataclass(frozen=True)
class Draws:
    """By position in the global batch."""

    pictures: NDArray[np.int64]
    """Indices in the cache."""
    readers: tuple[CacheReader, ...]
    """Of the area a sample is seen at."""
    captions: tuple[str | None, ...]
    """Caption variant; None is the empty caption."""
    times: NDArray[np.float32]
    pooled_times: NDArray[np.float32]
    """Of the second loss."""


def draw(phase: Phase, settings: TrainSettings, step: int) -> Draws:
    """Samples, areas, captions and times of a step's global batch."""
    pictures = phase.samples(step)
    positions, seed = np.arange(len(pictures)), settings.seed
    area = (uniform(stream_key(seed, AREA, step, positions), 1)[:, 0] * len(phase.readers)).astype(int)
    readers = tuple(phase.readers[number] for number in area)
    # The official code shifts every sample by the resolution the run is set to, not by the sample's own.
    shifts = torch.tensor([flow.shift((reader.area / reader.multiple) ** 2) for reader in readers])

    def times(purpose: int) -> NDArray[np.float32]:
        numbers = normal(stream_key(seed, purpose, step, positions), 1)[:, 0]
        found: NDArray[np.float32] = flow.timesteps(torch.from_numpy(numbers), shifts).numpy()
        return found

    chance = uniform(stream_key(seed, CAPTION, step, positions), 2)
    return Draws(
        pictures=pictures,
        readers=readers,
        captions=tuple(
            None if drop < settings.caption_dropout else caption(reader.variants(int(index)), settings.captions, choice)
            for reader, index, (drop, choice) in zip(readers, pictures, chance, strict=True)
        ),
        times=times(TIME),
        pooled_times=times(POOLED_TIME),
    )


def caption(variants: Sequence[str], weights: Mapping[str, float], choice: float) -> str | None:
    """The variant that a number in [0, 1) chooses; None where there is none."""
    named = [variant for variant in variants if variant in weights] or variants
    if not named:
        return None
    ends = list(accumulate(weights.get(variant, 1.0) for variant in named))
    return named[min(bisect_right(ends, choice * ends[-1]), len(named) - 1)]


def check_captions(reader: CacheReader, names: Iterable[str], setting: str) -> None:
    """Raise UserError for a caption variant that the cache does not have."""
    for name in names:
        if name not in reader.variant_names:
            raise UserError(f"{setting}: no {name!r}; the cache has the variants {', '.join(reader.variant_names)}")
