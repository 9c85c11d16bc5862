"""The latents of the cache: one shard after the other, pictures of equal shape encoded together."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from shared.images import Unreadable
from shared.tensors import write_shard
from shared.worklist import Shard
from train.cache.bfloat16 import to_bytes
from train.cache.encoders import ImageEncoder
from train.cache.pictures import RESIZE, Prepared, prepare
from train.cache.settings import CacheSettings

FORMAT = 1
PATCH = 2
"""Latents per token of the transformer, along a side."""
THREADS = 4

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
    """Everything that decides the bytes of a latent."""
    return {
        "format": FORMAT,
        "kind": "latents",
        "dtype": "bfloat16",
        "area": settings.area,
        "multiple": encoder.factor * PATCH,
        "resize": RESIZE,
        **encoder.description,
    }


@dataclass(frozen=True)
class LatentShards:
    """Makes shards of latents."""

    source: Path
    """Folder of the pictures."""
    encoder: ImageEncoder
    description: dict[str, Any]
    batch: int

    def write(self, shard: Shard) -> None:
        """Encode the pictures of a shard (image_id, locations). What fails is named in the file's description."""
        items = shard.items().to_pylist()
        prepared = self._prepare(items)
        rejects = [
            [item["image_id"], result.reason, result.detail]
            for item, result in zip(items, prepared, strict=True)
            if isinstance(result, Unreadable)
        ]
        latents = self._encode({i: p for i, p in enumerate(prepared) if isinstance(p, Prepared)}, items)
        rows = self._rows(items, prepared, latents)
        write_shard(shard.part, rows, SCHEMA, self.description | {"rejects": rejects})

    def _prepare(self, items: list[dict[str, Any]]) -> list[Prepared | Unreadable]:
        def attempt(item: dict[str, Any]) -> Prepared | Unreadable:
            area, multiple = self.description["area"], self.description["multiple"]
            try:
                return prepare(self.source, item["image_id"], item["locations"], area, multiple)
            except Unreadable as problem:
                return problem

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(attempt, items))

    def _encode(self, pictures: dict[int, Prepared], items: list[dict[str, Any]]) -> dict[int, Tensor]:
        """Latents by item. Raises RuntimeError for numbers that are not finite: they would poison training."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, picture in pictures.items():
            by_shape[picture.pixels.shape].append(index)
        latents: dict[int, Tensor] = {}
        for indices in by_shape.values():
            for first in range(0, len(indices), self.batch):
                batch = indices[first : first + self.batch]
                encoded = self.encoder.encode([pictures[index].pixels for index in batch])
                for index, latent in zip(batch, encoded, strict=True):
                    if not latent.isfinite().all():
                        raise RuntimeError(
                            f"image {items[index]['image_id']}: the autoencoder gave numbers that are not finite"
                        )
                    latents[index] = latent
        return latents

    def _rows(
        self, items: list[dict[str, Any]], prepared: list[Prepared | Unreadable], latents: dict[int, Tensor]
    ) -> Iterator[pa.RecordBatch]:
        for index, picture in enumerate(prepared):
            if isinstance(picture, Unreadable):
                continue
            channels, height, width = latents[index].shape
            row = {
                "image_id": items[index]["image_id"],
                "latent": to_bytes(latents[index]),
                "channels": channels,
                "height": height,
                "width": width,
                "crop": list(picture.fit.crop),
                "original_size": list(picture.original_size),
            }
            yield pa.RecordBatch.from_pylist([row], SCHEMA)
