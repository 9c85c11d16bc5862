"""Shard after shard through a model, so that the device does not wait between two."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.device import Pending, tell_waiting
from shared.streams import Shared, behind, merged, one_ahead
from shared.vision.feeder import Batch, Feeder, Item, Problem
from shared.vision.forward import Forward
from shared.worklist import Shard


class Encoded(NamedTuple):
    """Consecutive pictures of a shard."""

    shard: Shard
    items: Sequence[Item]
    vectors: NDArray[np.float32]
    """(items, k). Those of pictures with a problem mean nothing."""
    problems: Sequence[Problem | None]


Write = Callable[[Shard, Sequence[Encoded]], None]


def encode(
    shards: Sequence[Shard], feeder: Feeder, forwards: Sequence[Forward], batch: int, write: Write
) -> Iterator[Shard]:
    """Send the pictures (image_id, locations) of shards through a model; yields each shard that is written.

    There is one copy of the model per device; each takes the next shard when it is free. What a row becomes depends
    on its picture alone, and on `batch` as far as rounding goes: no batch holds pictures of two shards.
    """
    waiting = Shared(shards)
    yield from merged([_encode(waiting, feeder, forward, batch, write) for forward in forwards])
    tell_waiting((forward.worker for forward in forwards), "pictures")


def _encode(shards: Iterator[Shard], feeder: Feeder, forward: Forward, batch: int, write: Write) -> Iterator[Shard]:
    brought = one_ahead(_brought(_decoded(shards, feeder, batch), feeder, forward))

    def finish(found: tuple[Shard, list[Encoded]]) -> Shard:
        write(*found)
        return found[0]

    found = groupby(_computed(brought, forward), key=lambda part: part.shard)
    yield from behind(finish, ((shard, list(parts)) for shard, parts in found))


Decoded = tuple[Shard, Sequence[Item], Batch]


def _decoded(shards: Iterator[Shard], feeder: Feeder, size: int) -> Iterator[Decoded]:
    """Batches in order, with as many as there is room for being decoded ahead."""
    ahead: deque[Decoded] = deque()
    for shard, items in _cut(shards, size):
        while (batch := feeder.feed(items, wait=not ahead)) is None:
            yield ahead.popleft()
        ahead.append((shard, items, batch))
    yield from ahead


def _cut(shards: Iterator[Shard], size: int) -> Iterator[tuple[Shard, list[Item]]]:
    for shard in shards:
        items = shard.items().select(Item.__annotations__).to_pylist()
        for start in range(0, len(items), size):
            yield shard, items[start : start + size]


Brought = tuple[Shard, Sequence[Item], list[Problem | None], Tensor]


def _brought(decoded: Iterable[Decoded], feeder: Feeder, forward: Forward) -> Iterator[Brought]:
    """Batches on the device."""
    for shard, items, batch in decoded:
        problems = batch.problems()
        pixels = forward.bring(batch, feeder.geometry)
        feeder.release(batch)
        yield shard, items, problems, pixels


def _computed(brought: Iterable[Brought], forward: Forward) -> Iterator[Encoded]:
    """The results of each batch, taken from the device when it works on the next one."""
    pending: deque[tuple[Brought, Pending]] = deque()
    for batch in brought:
        pending.append((batch, forward.launch(batch[-1])))
        if len(pending) > 1:
            yield _taken(*pending.popleft())
    for last in pending:
        yield _taken(*last)


def _taken(batch: Brought, pending: Pending) -> Encoded:
    shard, items, problems, _ = batch
    return Encoded(shard, items, pending.result().numpy()[: len(items)], problems)
