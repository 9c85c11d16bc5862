"""Processes that read, decode and scale pictures into shared memory, while the device computes.

A slot of it has room for one picture at all its areas. Nothing here imports PyTorch: each of the processes would take
seconds and a few hundred megabytes for it.
"""

import multiprocessing
import queue
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray

from shared.corpus import Corpus
from shared.engine import decoders_named, follow_parent
from shared.images import Unreadable, decode
from shared.vision.feeder import Item, Problem, check_space
from train.cache.pictures import Prepared, scaled

Found = list[Prepared] | Problem
"""A picture at each area, or what is wrong with it."""

WAITING = 128
"""Most pictures of a device that wait for others of their shape: 0.4 GB at 1024 px. As many are decoded meanwhile, so
that there are enough when those that remain at the end of a shard are encoded at once."""

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Feeding:
    """A picture that is being prepared."""

    slot: int
    areas: Sequence[int]
    shapes: "Future[Found]"


class Feeder:
    """Decodes pictures with `workers` processes; one worker is a thread of this very process."""

    def __init__(self, corpus: Corpus, areas: Sequence[int], multiple: int, devices: int, workers: int) -> None:
        """Raises UserError where there is too little shared memory."""
        self.ahead = -(-2 * workers // devices) + WAITING
        """How many pictures each device may have fed and not taken."""
        room = 3 * sum(area**2 for area in areas)
        shape = (devices * self.ahead, room)
        check_space(prod(shape), "encode fewer areas at once (cache.areas)")
        self._memory = SharedMemory(create=True, size=prod(shape))
        self._slots: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._memory.buf)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(shape[0]):
            self._free.put(slot)
        self._here = _Preparer(corpus, multiple, self._slots) if workers == 1 else None
        self._pool: Executor = (
            ThreadPoolExecutor(1)
            if self._here
            else ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(corpus, multiple, self._memory.name, shape),
            )
        )

    def feed(self, item: Item, areas: Sequence[int]) -> Feeding:
        """Begin to prepare a picture."""
        slot = self._free.get()
        with decoders_named():
            prepare = self._here.prepare if self._here else _prepare
            return Feeding(slot, areas, self._pool.submit(prepare, slot, item, areas))

    def take(self, feeding: Feeding) -> Found:
        """Waits for a picture, and makes room for another. Raises UserError when a process died."""
        with decoders_named():
            found = feeding.shapes.result()
        if isinstance(found, list):
            pixels, start = self._slots[feeding.slot], 0
            for number, picture in enumerate(found):
                shape = (picture.fit.height, picture.fit.width, 3)
                found[number] = replace(picture, pixels=pixels[start : start + prod(shape)].reshape(shape).copy())
                start += prod(shape)
        self._free.put(feeding.slot)
        return found

    def __enter__(self) -> "Feeder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._slots
        self._here = None
        self._memory.unlink()


@dataclass(frozen=True)
class _Preparer:
    """What a process works with."""

    corpus: Corpus
    multiple: int
    slots: NDArray[np.uint8]

    def prepare(self, slot: int, item: Item, areas: Sequence[int]) -> Found:
        """Write the pixels of a picture at each area into a slot; gives the rest of it."""
        try:
            image = decode(self.corpus.read_picture(item["image_id"], item["locations"])).image
            pictures = [scaled(image, area, self.multiple) for area in areas]
        except Unreadable as problem:
            return problem.reason, problem.detail
        start = 0
        for picture in pictures:
            self.slots[slot, start : start + picture.pixels.size] = picture.pixels.ravel()
            start += picture.pixels.size
        return [replace(picture, pixels=_NO_PIXELS) for picture in pictures]


_preparer: _Preparer
_memory: SharedMemory


def _start(corpus: Corpus, multiple: int, name: str, shape: tuple[int, int]) -> None:
    global _preparer, _memory
    follow_parent()
    _memory = SharedMemory(name)
    _preparer = _Preparer(corpus, multiple, np.ndarray(shape, np.uint8, _memory.buf))


def _prepare(slot: int, item: Item, areas: Sequence[int]) -> Found:
    return _preparer.prepare(slot, item, areas)
