"""The plan: which samples an optimiser step sees, and who computes them. A pure function of the step.

Every epoch is a permutation of all samples. The epochs, one after the other, are one endless stream, cut
into global batches across epoch borders: nothing is dropped, padded or repeated. There is no state but the
step, so changing the number of ranks, the micro-batch or the workers changes nothing of what is learned.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.data.random import permutation, stream_key, uniform

# The streams of random numbers of a run, each with a purpose of its own.
ORDER, NOISE, TIME, CAPTION, REPEAT, AREA, POOLED_TIME, POOLED_NOISE, VALIDATION, ADAPTER, ROUNDING = range(11)


@dataclass(frozen=True, eq=False)
class Plan:
    """Samples by step. `samples` is how many there are, `batch` how many a step sees on all ranks together."""

    seed: int
    samples: int
    batch: int
    weights: NDArray[np.float64] | None = None
    """(samples,), positive, 1 on average: how often each is in an epoch. After e epochs sample i has been there e times
    its weight, to within one. None: once each."""
    stream: int = 0
    """Plans of the same seed and different streams have orders of their own."""

    def step(self, step: int) -> NDArray[np.int64]:
        """Sample indices of a step's global batch, by position in the batch."""
        position, last = step * self.batch, (step + 1) * self.batch
        epoch, found = self._epoch_of(position), []
        while position < last:
            start = _start(self, epoch)
            found.append(_epoch(self, epoch)[position - start : last - start])
            position += len(found[-1])
            epoch += 1
        return np.concatenate(found)

    def epochs(self, step: int) -> float:
        """How many epochs have been seen before a step."""
        return step * self.batch / self.samples

    def _epoch_of(self, position: int) -> int:
        """The epoch that a position of the stream belongs to."""
        epoch = position // self.samples  # So it is without weights; with weights, an epoch may be longer or shorter.
        while _start(self, epoch) > position:
            epoch -= 1
        while _start(self, epoch + 1) <= position:
            epoch += 1
        return epoch


@lru_cache(maxsize=8)
def _start(plan: Plan, epoch: int) -> int:
    """The position at which an epoch begins."""
    return epoch * plan.samples if plan.weights is None else int(_seen(plan, epoch).sum())


@lru_cache(maxsize=2)  # A step touches two epochs at most, unless an epoch is smaller than a batch.
def _epoch(plan: Plan, epoch: int) -> NDArray[np.int64]:
    """The samples of an epoch, in order."""
    key = stream_key(plan.seed, ORDER, epoch, *([plan.stream] if plan.stream else []))
    if plan.weights is None:
        return permutation(key, plan.samples)
    samples = np.repeat(np.arange(plan.samples), _seen(plan, epoch + 1) - _seen(plan, epoch))
    return samples[permutation(key, len(samples))]


def _seen(plan: Plan, epoch: int) -> NDArray[np.int64]:
    """How often each sample was seen before an epoch. Fractions are rounded by a phase of each sample's own, so that
    those of weight 1.5 are not all seen twice in the same epochs."""
    assert plan.weights is not None
    phase = uniform(stream_key(plan.seed, REPEAT, np.arange(plan.samples)), 1)[:, 0]
    return np.floor(epoch * plan.weights + phase).astype(np.int64)


def receipt(samples: NDArray[np.int64]) -> str:
    """Hash of a step's sample indices in order, logged with every step so that the order can be audited."""
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<i8").tobytes()).hexdigest()[:16]


def assign(tokens: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Spread a batch over ranks and micro-batches: result[rank][micro] lists positions in the batch.

    Ranks get about equally many tokens (longest first, each to the least loaded), so that they finish
    together. All ranks have the same number of micro-batches, as few as keep each within `budget` tokens; a
    sample longer than the budget is alone in its micro-batch. Where a rank has fewer samples than
    micro-batches, its first ones are empty.
    """
    if len(tokens) < ranks:
        raise ValueError(f"a batch of {len(tokens)} cannot be spread over {ranks} ranks; use at least {ranks}")
    shares = spread(range(len(tokens)), tokens, ranks)
    micros = max(-(-sum(tokens[i] for i in share) // budget) for share in shares)
    while not all(_fits(share, tokens, micros, budget) for share in shares):
        micros += 1
    return [sorted(spread(share, tokens, micros), key=len) for share in shares]


def _fits(share: Sequence[int], tokens: Sequence[int], micros: int, budget: int) -> bool:
    return all(len(micro) <= 1 or sum(tokens[i] for i in micro) <= budget for micro in spread(share, tokens, micros))


def spread(positions: Sequence[int], tokens: Sequence[int], bins: int) -> list[list[int]]:
    """Greedy balancing: the longest first, each into the bin with the fewest tokens."""
    result: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, index) for index in range(bins)]
    for position in sorted(positions, key=lambda i: (-tokens[i], i)):
        load, index = heapq.heappop(heap)
        result[index].append(position)
        heapq.heappush(heap, (load + tokens[position], index))
    return [sorted(share) for share in result]
