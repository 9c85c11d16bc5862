"""Processes that read and decode pictures into shared memory, while the device computes.

Nothing here imports PyTorch: each of the processes would take seconds and a few hundred megabytes for it.
"""

import multiprocessing
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from shared.corpus import Corpus
from shared.engine import follow_parent
from shared.errors import UserError
from shared.images import Unreadable, decode
from shared.vision.geometry import Geometry

CHUNK = 16
"""Pictures that a process decodes per task: a tenth of a second, so that a batch is soon complete."""

SHARED = Path("/dev/shm")
"""Where Linux keeps shared memory."""

Pixels = NDArray[np.uint8]
Problem = tuple[str, str]
"""Why a picture cannot be used: reason and detail."""


class Item(TypedDict):
    """A picture to be read."""

    image_id: str
    locations: list[str]


@dataclass(frozen=True)
class Batch:
    """Pictures that are being decoded."""

    slot: int
    pixels: Pixels
    """(batch, side, side, 3): the slot. Its rows are the pictures in their order; those behind them, and those with a
    problem, may hold anything."""
    rows: int
    parts: tuple[Future[list[Problem | None]], ...]

    def problems(self) -> list[Problem | None]:
        """Waits until all are decoded; says of each picture what is wrong with it.

        Raises UserError when a process died.
        """
        with _named():
            return [problem for part in self.parts for problem in part.result()]


@contextmanager
def _named() -> Iterator[None]:
    """What a user can do about a dead process."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes pictures died: out of memory, or a crash inside a decoder; "
            "finished shards are kept, start the command again to go on"
        ) from None


class Feeder:
    """Decodes batches of up to `batch` pictures. A context manager; batches may be fed from several threads."""

    def __init__(self, corpus: Corpus, geometry: Geometry, max_pixels: int, batch: int, workers: int, devices: int = 1):
        """Raises UserError where there is too little shared memory."""
        self._batch = batch
        self._shape = (batch, geometry.side, geometry.side, 3)
        # Per device one batch that is being copied, and as many pictures ahead as the processes can work on.
        ahead = 2 + -(-2 * workers * CHUNK // batch)
        slots = devices * 2 + ahead
        size = slots * int(np.prod(self._shape))
        _check_space(size)
        self._memory = SharedMemory(create=True, size=size)
        self._pixels: Pixels = np.ndarray((slots, *self._shape), np.uint8, buffer=self._memory.buf)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(corpus, geometry, max_pixels, self._memory.name, (slots, *self._shape)),
        )

    def feed(self, items: Sequence[Item], wait: bool) -> Batch | None:
        """Begin to decode up to `batch` pictures; None if there is no room now and `wait` is false."""
        try:
            slot = self._free.get(wait)
        except queue.Empty:
            return None
        with _named():
            parts = tuple(
                self._pool.submit(_decode, slot, start, items[start : start + CHUNK])
                for start in range(0, len(items), CHUNK)
            )
        return Batch(slot, self._pixels[slot], len(items), parts)

    def release(self, batch: Batch) -> None:
        """The batch's pixels are not needed any more."""
        self._free.put(batch.slot)

    def __enter__(self) -> "Feeder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._pixels
        self._memory.unlink()


def _check_space(size: int) -> None:
    if SHARED.is_dir():
        about = os.statvfs(SHARED)
        free = about.f_bavail * about.f_frsize
        if free < size:
            raise UserError(
                f"{SHARED}: {free >> 20} MB of shared memory are free, {size >> 20} MB are needed; "
                "give the container more (docker run --shm-size) or set a smaller batch"
            )


@dataclass(frozen=True)
class _Worker:
    """What a process works with."""

    corpus: Corpus
    geometry: Geometry
    max_pixels: int
    memory: SharedMemory
    pixels: Pixels


_worker: _Worker


def _start(corpus: Corpus, geometry: Geometry, max_pixels: int, name: str, shape: tuple[int, ...]) -> None:
    global _worker
    follow_parent()
    memory = SharedMemory(name)
    _worker = _Worker(corpus, geometry, max_pixels, memory, np.ndarray(shape, np.uint8, buffer=memory.buf))


def _decode(slot: int, start: int, items: Sequence[Item]) -> list[Problem | None]:
    pixels = _worker.pixels[slot, start : start + len(items)]
    return [_decode_one(item, row) for item, row in zip(items, pixels, strict=True)]


def _decode_one(item: Item, row: Pixels) -> Problem | None:
    try:
        data = _worker.corpus.read_picture(item["image_id"], item["locations"])
        row[:] = _worker.geometry.apply(decode(data, _worker.max_pixels, _worker.geometry.enough).image)
    except Unreadable as problem:
        return problem.reason, problem.detail
    return None
