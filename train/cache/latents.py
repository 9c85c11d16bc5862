"""The latents of the cache: one shard after the other, pictures of equal shape encoded together."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from shared.corpus import Corpus
from shared.images import Unreadable
from shared.tensors import write_shard
from shared.worklist import Shard
from train.cache.bfloat16 import to_bytes
from train.cache.encoders import ImageEncoder
from train.cache.pictures import RESIZE, Prepared, prepare
from train.cache.settings import CacheSettings

T = TypeVar("T")
R = TypeVar("R")

FORMAT = 1
PATCH = 2
"""Latents per token of the transformer, along a side."""
THREADS = 4
WAITING = 128
"""Most pictures that wait for others of their shape: 0.4 GB at 1024 px."""

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
"""`latent` is bfloat16, channels x height x width; `crop` is left, top, right, bottom in source pixels."""


def describe(encoder: ImageEncoder, settings: CacheSettings) -> dict[str, Any]:
    """Everything that decides the bytes of the latents of all areas (see `manifest.by_area`)."""
    return {
        "format": FORMAT,
        "kind": "latents",
        "dtype": "bfloat16",
        "areas": list(settings.areas),
        "multiple": encoder.factor * PATCH,
        "resize": RESIZE,
        **encoder.description,
    }


@dataclass(frozen=True)
class LatentShards:
    """Makes shards of latents."""

    pictures: Corpus
    encoder: ImageEncoder
    description: dict[str, Any]
    batch: int

    def write(self, shard: Shard) -> None:
        """Encode the pictures of a shard (image_id, locations). What fails is named in the file's description.

        Raises RuntimeError for numbers that are not finite: they would poison training.
        """
        items = shard.items().to_pylist()
        rejects: list[list[str]] = []
        prepared = self._prepare(items, rejects)
        rows = dict(row for batch in batches(prepared, self.batch) for row in self._encode(batch, items))
        batches_in_order = (pa.RecordBatch.from_pylist([rows[index]], SCHEMA) for index in sorted(rows))
        write_shard(shard.part, batches_in_order, SCHEMA, self.description | {"rejects": rejects})

    def _prepare(self, items: list[dict[str, Any]], rejects: list[list[str]]) -> Iterator[tuple[int, Prepared]]:
        """The pictures that can be encoded, by item; the others are added to `rejects`."""
        area, multiple = self.description["area"], self.description["multiple"]

        def attempt(item: dict[str, Any]) -> Prepared | Unreadable:
            try:
                return prepare(self.pictures, item["image_id"], item["locations"], area, multiple)
            except Unreadable as problem:
                return problem

        for index, result in enumerate(ahead(attempt, items)):
            if isinstance(result, Prepared):
                yield index, result
            else:
                rejects.append([items[index]["image_id"], result.reason, result.detail])

    def _encode(
        self, batch: Sequence[tuple[int, Prepared]], items: list[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows by item, for pictures of one shape."""
        latents = self.encoder.encode([picture.pixels for _, picture in batch])
        for (index, picture), latent in zip(batch, latents, strict=True):
            image_id = items[index]["image_id"]
            if not latent.isfinite().all():
                raise RuntimeError(f"image {image_id}: the autoencoder gave numbers that are not finite")
            channels, height, width = latent.shape
            yield (
                index,
                {
                    "image_id": image_id,
                    "latent": to_bytes(latent),
                    "channels": channels,
                    "height": height,
                    "width": width,
                    "crop": list(picture.fit.crop),
                    "original_size": list(picture.original_size),
                },
            )


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`function(item)` for every item, in order, made by threads a little before it is asked for."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def batches(pictures: Iterable[tuple[int, Prepared]], size: int) -> Iterator[list[tuple[int, Prepared]]]:
    """Pictures of equal shape, at most `size` together. Depends on their order alone, so it is always the same."""
    waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = defaultdict(list)
    for index, picture in pictures:
        shape = picture.pixels.shape
        waiting[shape].append((index, picture))
        if len(waiting[shape]) == size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) > WAITING:
            yield waiting.pop(max(waiting, key=lambda other: len(waiting[other])))
    yield from waiting.values()
