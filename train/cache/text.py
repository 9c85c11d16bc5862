"""The caption embeddings of the cache, without padding and without what all captions share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from shared.tensors import write_shard
from shared.worklist import Shard
from train.cache.bfloat16 import to_bytes
from train.cache.encoders import TextEncoder

FORMAT = 1

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("caption_sha", pa.string(), nullable=False),
        pa.field("embedding", pa.large_binary(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("shared", pa.int32(), nullable=False),
    ]
)
"""`embedding` is bfloat16, (tokens - shared) x dim: the first `shared` rows are those of the prompt prefix."""

SHARED_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("embedding", pa.large_binary(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
    ]
)
"""What is stored once: `prefix`, the rows of the prompt prefix, and `empty`, the caption for dropout."""


def describe(encoder: TextEncoder) -> dict[str, Any]:
    """Everything that decides the bytes of an embedding."""
    return {"format": FORMAT, "kind": "text", "dtype": "bfloat16", **encoder.description}


def write_shared(path: Path, encoder: TextEncoder, description: dict[str, Any]) -> None:
    """Write the rows that are the same for every caption."""
    # The encoder is causal: the prefix has the same rows in front of any caption.
    prefix = encoder.encode(["."])[0][: len(encoder.shared)]
    rows = [
        {"name": name, "embedding": to_bytes(embedding), "tokens": len(embedding)}
        for name, embedding in (("prefix", prefix), ("empty", encoder.encode([""])[0]))
    ]
    write_shard(path, [pa.RecordBatch.from_pylist(rows, SHARED_SCHEMA)], SHARED_SCHEMA, description)


@dataclass(frozen=True)
class TextShards:
    """Makes shards of caption embeddings."""

    encoder: TextEncoder
    description: dict[str, Any]

    def write(self, shard: Shard) -> None:
        """Encode the captions of a shard (image_id, caption_sha, text)."""
        items = shard.items().to_pylist()
        embeddings = self.encoder.encode([item["text"] for item in items])
        write_shard(shard.part, self._rows(items, embeddings), SCHEMA, self.description)

    def _rows(self, items: list[dict[str, Any]], embeddings: list[Tensor]) -> Iterator[pa.RecordBatch]:
        prefix = self.encoder.shared
        for item, embedding in zip(items, embeddings, strict=True):
            if not embedding.isfinite().all():
                raise RuntimeError(f"image {item['image_id']}: the text encoder gave numbers that are not finite")
            # A tokenizer may merge the prefix's end with a caption's beginning: such a caption is stored whole.
            shared = len(prefix) if prefix and self.encoder.ids(item["text"])[: len(prefix)] == prefix else 0
            row = {
                "image_id": item["image_id"],
                "caption_sha": item["caption_sha"],
                "embedding": to_bytes(embedding[shared:]),
                "tokens": len(embedding),
                "shared": shared,
            }
            yield pa.RecordBatch.from_pylist([row], SCHEMA)
