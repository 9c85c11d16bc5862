"""Processes that read and decode pictures into shared memory, while the device computes.

Pixels are written into slots of a fixed size. JPEGs that the GPU is to decode are copied as they are, into room of
their own beside the pixels; those that do not fit are decoded here, so that what becomes of a picture depends on the
picture alone.

Nothing here imports PyTorch: each of the processes would take seconds and a few hundred megabytes for it.
"""

import math
import multiprocessing
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from shared.corpus import Corpus
from shared.engine import decoders_named, follow_parent
from shared.errors import UserError
from shared.images import Unreadable, decode, is_plain_jpeg
from shared.vision import Decode
from shared.vision.geometry import Geometry

CHUNK = 16
"""Pictures that a process decodes per task: a tenth of a second, so that a batch is soon complete."""

ROOM = 2 << 20
"""Bytes of a JPEG that the GPU may decode. Only what is written to counts: most are much smaller."""

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
    room: Pixels
    """(batch, ROOM): the bytes of JPEGs."""
    rows: int
    parts: tuple[Future[list[Problem | int]], ...]

    def problems(self) -> list[Problem | None]:
        """Waits until all are decoded; says of each picture what is wrong with it.

        Raises UserError when a process died.
        """
        return [None if isinstance(found, int) else found for found in self._found()]

    def jpegs(self) -> dict[int, Pixels]:
        """Waits as well. The bytes of those that the GPU is to decode, by their row."""
        sizes = enumerate(self._found())
        return {row: self.room[row, :size] for row, size in sizes if isinstance(size, int) and size}

    def _found(self) -> list[Problem | int]:
        with decoders_named():
            return [found for part in self.parts for found in part.result()]


class Feeder:
    """Decodes batches of up to `batch` pictures. A context manager; batches may be fed from several threads."""

    def __init__(
        self,
        corpus: Corpus,
        geometry: Geometry,
        decode: Decode,
        max_pixels: int,
        batch: int,
        workers: int,
        devices: int = 1,
    ) -> None:
        """Raises UserError where there is too little shared memory."""
        self.geometry = geometry
        # Per device one batch that is being copied, and as many pictures ahead as the processes can work on.
        ahead = 2 + -(-2 * workers * CHUNK // batch)
        slots = devices * 2 + ahead
        shapes = (slots, batch, geometry.side, geometry.side, 3), (slots, batch, ROOM if decode == "gpu" else 0)
        size = sum(math.prod(shape) for shape in shapes)
        check_space(size, "set a smaller batch")
        self._memory = SharedMemory(create=True, size=size)
        self._pixels, self._room = _arrays(self._memory, shapes)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(corpus, geometry, decode, max_pixels, self._memory.name, shapes),
        )

    def feed(self, items: Sequence[Item], wait: bool) -> Batch | None:
        """Begin to decode up to `batch` pictures; None if there is no room now and `wait` is false."""
        try:
            slot = self._free.get(wait)
        except queue.Empty:
            return None
        with decoders_named():
            parts = tuple(
                self._pool.submit(_decode, slot, start, items[start : start + CHUNK])
                for start in range(0, len(items), CHUNK)
            )
        return Batch(slot, self._pixels[slot], self._room[slot], len(items), parts)

    def release(self, batch: Batch) -> None:
        """The batch's pixels are not needed any more."""
        self._free.put(batch.slot)

    def __enter__(self) -> "Feeder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._pixels, self._room
        self._memory.unlink()


def check_space(size: int, instead: str) -> None:
    """Raises UserError where there is less shared memory than `size` bytes; `instead` is what one can do with less."""
    if SHARED.is_dir():
        about = os.statvfs(SHARED)
        free = about.f_bavail * about.f_frsize
        if free < size:
            raise UserError(
                f"{SHARED}: {free >> 20} MB of shared memory are free, {size >> 20} MB are needed; "
                f"give the container more (docker run --shm-size) or {instead}"
            )


@dataclass(frozen=True)
class _Worker:
    """What a process works with."""

    corpus: Corpus
    geometry: Geometry
    decode: Decode
    max_pixels: int
    memory: SharedMemory
    pixels: Pixels
    room: Pixels


_worker: _Worker


def _start(
    corpus: Corpus, geometry: Geometry, decode: Decode, max_pixels: int, name: str, shapes: Sequence[tuple[int, ...]]
) -> None:
    global _worker
    follow_parent()
    memory = SharedMemory(name)
    _worker = _Worker(corpus, geometry, decode, max_pixels, memory, *_arrays(memory, shapes))


def _arrays(memory: SharedMemory, shapes: Sequence[tuple[int, ...]]) -> tuple[Pixels, Pixels]:
    """The pixels and the room for JPEGs, one behind the other."""
    pixels, room = shapes
    return np.ndarray(pixels, np.uint8, memory.buf), np.ndarray(room, np.uint8, memory.buf, math.prod(pixels))


def _decode(slot: int, start: int, items: Sequence[Item]) -> list[Problem | int]:
    return [
        _decode_one(item, _worker.pixels[slot, row], _worker.room[slot, row]) for row, item in enumerate(items, start)
    ]


def _decode_one(item: Item, pixels: Pixels, room: Pixels) -> Problem | int:
    """How many bytes the GPU has to decode: none, for most formats."""
    try:
        data = _worker.corpus.read_picture(item["image_id"], item["locations"])
        if len(data) <= len(room) and is_plain_jpeg(data, _worker.max_pixels):
            room[: len(data)] = np.frombuffer(data, np.uint8)
            return len(data)
        enough = _worker.geometry.enough if _worker.decode == "reduced" else None
        pixels[:] = _worker.geometry.apply(decode(data, _worker.max_pixels, enough).image)
    except Unreadable as problem:
        return problem.reason, problem.detail
    return 0
