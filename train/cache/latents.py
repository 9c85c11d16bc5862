"""The latents of the cache: a picture is decoded once for all areas, pictures of equal shape are encoded together.

Processes decode, a thread brings batches to the device, the device encodes, a thread writes: across shards, so that
the device does not wait between two.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from torch import Tensor

from shared.corpus import Corpus
from shared.device import Pending, tell_waiting
from shared.files import file_sha256
from shared.streams import Shared, behind, merged, one_ahead
from shared.tensors import write_shard
from shared.vision.feeder import Item
from shared.worklist import Shard
from train.cache.autoencoder import ImageEncoder
from train.cache.feeder import WAITING, Feeder, Feeding
from train.cache.pictures import RESIZE, Prepared
from train.cache.settings import CacheSettings, Dtype
from train.cache.stored import columns, is_finite, layout, record_batch, schema_of

FORMAT = 1
PATCH = 2
"""Latents per token of the transformer, along a side."""
LARGE = 1024**2
"""Pixels of pictures of which fewer are encoded together, for memory's sake."""
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("latent", pa.large_binary(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("crop", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("original_size", pa.list_(pa.int32(), 2), nullable=False),
    ]
)
"""`latent` is channels x height x width, in the form that the description says (see `stored.layout`); `crop` is left,
top, right, bottom in source pixels."""


def describe(encoder: ImageEncoder, settings: CacheSettings) -> dict[str, Any]:
    """Everything that decides the bytes of the latents of all areas (see `manifest.by_area`)."""
    return {
        "format": FORMAT,
        "kind": "latents",
        **layout(settings.latent_dtype),
        "areas": list(settings.areas),
        "multiple": encoder.factor * PATCH,
        "resize": RESIZE,
        **encoder.description,
    }


@dataclass(eq=False)
class Task:
    """Shards of several areas with the same items."""

    shards: list[Shard]
    areas: list[int]
    items: list[Item] = field(default_factory=list)
    rejects: list[list[str]] = field(default_factory=list)


def tasks(shards: Iterable[Shard], areas: Mapping[Path, int]) -> list[Task]:
    """Shards whose items can be decoded together: the same stretch of the same list. `areas` are those of folders."""
    digest = cache(file_sha256)
    found: dict[tuple[str, int], Task] = {}
    for shard in shards:
        task = found.setdefault((digest(shard.todo), shard.offset), Task([], []))
        task.shards.append(shard)
        task.areas.append(areas[shard.part.parent])
    return list(found.values())


class Place(NamedTuple):
    """Which latent of a task a picture becomes."""

    item: int
    area: int
    """Its position among the areas of the task."""


class Batch(NamedTuple):
    """Pictures of one shape; without any, the end of a task."""

    task: Task
    pictures: Sequence[tuple[Place, Prepared]]


@dataclass(frozen=True)
class LatentShards:
    """Makes shards of latents, with one encoder per device; each takes the next task when it is free."""

    pictures: Corpus
    encoders: Sequence[ImageEncoder]
    descriptions: Mapping[Path, dict[str, Any]]
    """What stands in the shards of a folder (see `manifest.by_area`)."""
    batch: int
    workers: int
    """Processes that decode."""

    def write(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Encode the pictures of shards (image_id, locations); yields each shard that is written.

        Pictures that fail are named in the file's description. Raises RuntimeError for numbers that are not finite:
        they would poison training.
        """
        areas = {folder: about["area"] for folder, about in self.descriptions.items()}
        multiple = next(iter(self.descriptions.values()))["multiple"]
        waiting = Shared(tasks(shards, areas))
        with Feeder(self.pictures, list(areas.values()), multiple, len(self.encoders), self.workers) as feeder:
            yield from merged([self._encode(waiting, feeder, encoder) for encoder in self.encoders])
        tell_waiting((encoder.worker for encoder in self.encoders), "pictures")

    def _encode(self, waiting: Iterator[Task], feeder: Feeder, encoder: ImageEncoder) -> Iterator[Shard]:
        brought = one_ahead(_brought(_batched(_decoded(waiting, feeder), self.batch), encoder))
        dtype = self._dtype
        found = (
            (task, {place: row for batch, latents in batches for place, row in _rows(batch, latents, dtype)})
            for task, batches in groupby(_computed(brought, encoder), key=lambda computed: computed[0].task)
        )
        for shards in behind(self._finish, found):
            yield from shards

    @property
    def _dtype(self) -> Dtype:
        dtype: Dtype = next(iter(self.descriptions.values()))["dtype"]
        return dtype

    def _finish(self, found: tuple[Task, dict[Place, dict[str, Any]]]) -> list[Shard]:
        task, rows = found
        schema = schema_of(SCHEMA, self._dtype)
        for area, shard in enumerate(task.shards):
            places = sorted(place for place in rows if place.area == area)
            batches = (record_batch([rows.pop(place)], schema) for place in places)
            about = self.descriptions[shard.part.parent] | {"rejects": task.rejects}
            write_shard(shard.part, batches, schema, about)
        return task.shards


def _decoded(waiting: Iterator[Task], feeder: Feeder) -> Iterator[tuple[Task, int, Sequence[Prepared]]]:
    """The pictures of each task in order, and last of a task nothing; what cannot be encoded is noted there."""
    ahead: deque[tuple[Task, int, Feeding]] = deque()

    def taken() -> Iterator[tuple[Task, int, Sequence[Prepared]]]:
        task, index, feeding = ahead.popleft()
        found = feeder.take(feeding)
        if isinstance(found, list):
            yield task, index, found
        else:
            task.rejects.append([task.items[index]["image_id"], *found])
        if index == len(task.items) - 1:
            yield task, len(task.items), []

    for task in waiting:
        task.items = task.shards[0].items().select(Item.__annotations__).to_pylist()
        for index, item in enumerate(task.items):
            if len(ahead) == feeder.ahead:
                yield from taken()
            ahead.append((task, index, feeder.feed(item, task.areas)))
    while ahead:
        yield from taken()


def _batched(decoded: Iterable[tuple[Task, int, Sequence[Prepared]]], size: int) -> Iterator[Batch]:
    for task, pictures in groupby(decoded, key=lambda found: found[0]):
        placed = ((Place(index, area), picture) for _, index, areas in pictures for area, picture in enumerate(areas))
        for batch in batches(placed, size):
            yield Batch(task, batch)
        yield Batch(task, [])


def batches(pictures: Iterable[tuple[Place, Prepared]], size: int) -> Iterator[list[tuple[Place, Prepared]]]:
    """Pictures of equal shape, at most `size` together, of those above 1024 px fewer.

    Depends on their order alone, so it is always the same.
    """
    waiting: dict[tuple[int, ...], list[tuple[Place, Prepared]]] = defaultdict(list)
    for place, picture in pictures:
        shape = picture.pixels.shape
        waiting[shape].append((place, picture))
        if len(waiting[shape]) >= min(size, size * LARGE // (shape[0] * shape[1])):
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) > WAITING:
            yield waiting.pop(max(waiting, key=lambda other: len(waiting[other])))
    yield from waiting.values()


def _brought(found: Iterable[Batch], encoder: ImageEncoder) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches on the device."""
    for batch in found:
        yield batch, encoder.bring([picture.pixels for _, picture in batch.pictures]) if batch.pictures else None


def _computed(
    brought: Iterable[tuple[Batch, Tensor | None]], encoder: ImageEncoder
) -> Iterator[tuple[Batch, Sequence[Tensor]]]:
    """The latents of each batch, taken from the device when it works on the next one."""
    pending: deque[tuple[Batch, Pending | None]] = deque()
    for batch, pixels in brought:
        pending.append((batch, None if pixels is None else encoder.launch(pixels)))
        if sum(bool(launched) for _, launched in pending) > 1:
            yield _taken(*pending.popleft())
    for last in pending:
        yield _taken(*last)


def _taken(batch: Batch, pending: Pending | None) -> tuple[Batch, Sequence[Tensor]]:
    return batch, [] if pending is None else list(pending.result())


def _rows(batch: Batch, latents: Sequence[Tensor], dtype: Dtype) -> Iterator[tuple[Place, dict[str, Any]]]:
    for (place, picture), latent in zip(batch.pictures, latents, strict=True):
        image_id = batch.task.items[place.item]["image_id"]
        if not is_finite(latent):
            raise RuntimeError(f"image {image_id}: the autoencoder gave numbers that are not finite")
        channels, height, width = latent.shape
        yield (
            place,
            {
                "image_id": image_id,
                **columns("latent", latent, dtype),
                "channels": channels,
                "height": height,
                "width": width,
                "crop": list(picture.fit.crop),
                "original_size": list(picture.original_size),
            },
        )
