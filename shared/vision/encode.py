"""Shard after shard through a model, so that the device does not wait between two."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.progress import console
from shared.vision.feeder import Batch, Feeder, Item, Problem
from shared.vision.forward import Forward, Pending
from shared.worklist import Shard

T = TypeVar("T")


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
    waiting = _Shared(shards)
    yield from _merged([_encode(waiting, feeder, forward, batch, write) for forward in forwards])
    for forward in forwards:
        if (waited := forward.waited()) is not None:
            console.print(f"{forward.device} waited {waited:.1%} of the time")


def _encode(shards: Iterator[Shard], feeder: Feeder, forward: Forward, batch: int, write: Write) -> Iterator[Shard]:
    brought = _one_ahead(_brought(_decoded(shards, feeder, batch), feeder, forward))
    for shard, parts in groupby(_computed(brought, forward), key=lambda part: part.shard):
        write(shard, list(parts))
        yield shard


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
    return Encoded(shard, items, pending.result()[: len(items)], problems)


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """What an iterator yields, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


class _Shared(Iterator[T]):
    """An iterator for several threads."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


def _merged(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """What several iterators yield, each driven by a thread of its own; the first error is raised."""
    if len(streams) == 1:
        yield from streams[0]
        return
    found: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()

    def drive(stream: Iterator[T]) -> None:
        try:
            for item in stream:
                found.put(item)
            found.put(None)
        except BaseException as error:  # To be raised in the thread that waits.
            found.put(error)

    for stream in streams:
        threading.Thread(target=drive, args=(stream,), daemon=True).start()
    running = len(streams)
    while running:
        item = found.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            running -= 1
        else:
            yield item
