"""The caption embeddings of the cache, without padding and without what all captions share."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from torch import Tensor

from shared.device import Pending, tell_waiting
from shared.streams import Shared, behind, merged, one_ahead
from shared.tensors import write_shard
from shared.worklist import Shard
from train.cache.settings import Dtype
from train.cache.stored import columns, is_finite, layout, record_batch, schema_of, to_bytes
from train.cache.text_encoder import TextEncoder, packs

FORMAT = 2
WRITERS = 2
"""Threads per device that bring embeddings into rows, and as many that write shards: one does not keep up with a fast
GPU, whose own thread must do nothing else."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("caption_sha", pa.string(), nullable=False),
        pa.field("embedding", pa.large_binary(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("shared", pa.int32(), nullable=False),
        pa.field("cut", pa.bool_(), nullable=False),
    ]
)
"""`embedding` is (tokens - shared) x dim, in the form that the description says (see `stored.layout`): the first
`shared` rows are those of the prompt prefix. A caption is `cut` where it is longer than the limit."""

SHARED_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("embedding", pa.large_binary(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
    ]
)
"""What is stored once: `prefix`, the rows of the prompt prefix, and `empty`, the caption for dropout. In
bfloat16 always."""


def describe(encoder: TextEncoder, dtype: Dtype = "bfloat16") -> dict[str, Any]:
    """Everything that decides the bytes of an embedding."""
    return {"format": FORMAT, "kind": "text", **layout(dtype), **encoder.description}


def write_shared(path: Path, encoder: TextEncoder, description: dict[str, Any]) -> None:
    """Write the rows that are the same for every caption."""
    # The encoder is causal: the prefix has the same rows in front of any caption.
    prefix = encoder.encode(["."])[0][: len(encoder.shared)]
    rows = [
        {"name": name, "embedding": to_bytes(embedding), "tokens": len(embedding)}
        for name, embedding in (("prefix", prefix), ("empty", encoder.encode([""])[0]))
    ]
    write_shard(path, [record_batch(rows, SHARED_SCHEMA)], SHARED_SCHEMA, description)


@dataclass(frozen=True)
class TextShards:
    """Makes shards of caption embeddings, with one encoder per device; each takes the next shard when it is free."""

    encoders: Sequence[TextEncoder]
    description: dict[str, Any]

    def write(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Encode the captions of shards (image_id, caption_sha, text); yields each shard that is written.

        Raises RuntimeError for numbers that are not finite.
        """
        waiting = Shared(shards)
        yield from merged([self._encode(waiting, encoder) for encoder in self.encoders])
        tell_waiting((encoder.worker for encoder in self.encoders), "captions")

    def _encode(self, shards: Iterator[Shard], encoder: TextEncoder) -> Iterator[Shard]:
        tokenised = one_ahead((shard, *_tokenised(shard, encoder)) for shard in shards)
        computed = _computed(one_ahead(_brought(tokenised, encoder)), encoder)
        dtype: Dtype = self.description["dtype"]
        schema = schema_of(SCHEMA, dtype)

        def in_rows(pack: Pack) -> tuple[Shard, pa.RecordBatch]:
            return pack.shard, record_batch(list(_rows(pack, encoder, dtype)), schema)

        found = (
            (shard, [rows for _, rows in of_shard])
            for shard, of_shard in groupby(behind(in_rows, computed, WRITERS), key=lambda found: found[0])
        )
        yield from behind(self._finish, found, WRITERS)

    def _finish(self, found: tuple[Shard, list[pa.RecordBatch]]) -> Shard:
        shard, batches = found
        write_shard(shard.part, batches, schema_of(SCHEMA, self.description["dtype"]), self.description)
        return shard


class Pack(NamedTuple):
    """Captions that are encoded together."""

    shard: Shard
    items: Sequence[dict[str, Any]]
    ids: Sequence[Sequence[int]]
    tensor: Tensor
    """On the device: before encoding the tokens, behind it their embeddings (tokens, dim) in this machine's memory."""


Items = list[dict[str, Any]]
Ids = list[list[int]]


def _tokenised(shard: Shard, encoder: TextEncoder) -> tuple[Items, Ids]:
    """The captions of a shard, and their tokens."""
    found = shard.items()
    return found.to_pylist(), encoder.all_ids(found["text"].to_pylist())


def _brought(tokenised: Iterable[tuple[Shard, Items, Ids]], encoder: TextEncoder) -> Iterator[Pack]:
    """Packs of captions on the device."""
    for shard, items, ids in tokenised:
        of_packs = iter(items)
        for pack in packs(ids, encoder.pack):
            yield Pack(shard, list(islice(of_packs, len(pack))), pack, encoder.bring(pack))


def _computed(brought: Iterable[Pack], encoder: TextEncoder) -> Iterator[Pack]:
    """The embeddings of each pack, taken from the device when it works on the next one."""
    pending: deque[tuple[Pack, Pending]] = deque()
    for pack in brought:
        pending.append((pack, encoder.launch(pack.tensor)))
        if len(pending) > 1:
            yield _taken(*pending.popleft())
    for last in pending:
        yield _taken(*last)


def _taken(pack: Pack, pending: Pending) -> Pack:
    return pack._replace(tensor=pending.result())


def _rows(pack: Pack, encoder: TextEncoder, dtype: Dtype) -> Iterator[dict[str, Any]]:
    prefix = encoder.shared
    embeddings = pack.tensor.split([len(ids) for ids in pack.ids])
    all_finite = is_finite(pack.tensor)
    for item, ids, embedding in zip(pack.items, pack.ids, embeddings, strict=True):
        if not all_finite and not is_finite(embedding):
            raise RuntimeError(f"image {item['image_id']}: the text encoder gave numbers that are not finite")
        # A tokenizer may merge the prefix's end with a caption's beginning: such a caption is stored whole.
        shared = len(prefix) if prefix and ids[: len(prefix)] == prefix else 0
        yield {
            "image_id": item["image_id"],
            "caption_sha": item["caption_sha"],
            **columns("embedding", embedding[shared:], dtype),
            "tokens": len(embedding),
            "shared": shared,
            "cut": encoder.is_cut(item["text"], ids),
        }
