"""`cache-latents` from its settings: what is new is encoded, then the manifest is written."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from shared.corpus import Corpus
from shared.device import busy, devices
from shared.errors import UserError
from shared.progress import console
from shared.worklist import WorkList, finish
from train.cache import latents, text
from train.cache.autoencoder import ImageEncoder
from train.cache.hub import weights_hash
from train.cache.manifest import CacheLayout, by_area, finalise, read_about, write_rejects
from train.cache.settings import CacheSettings
from train.cache.text_encoder import TextEncoder


@dataclass(frozen=True)
class Summary:
    """What a finished cache holds."""

    identity: str
    images: int
    captions: Counter[str]
    """By variant."""
    cut: int
    """Captions of which only a beginning is encoded."""
    rejects: Counter[str]
    """Pictures that could not be encoded, by reason."""
    bytes: int
    """Of all tensors in the manifest."""


def cache(
    work: Path,
    pictures: Corpus,
    model: Path,
    settings: CacheSettings,
    on: Sequence[torch.device] | None = None,
    workers: int | None = None,
) -> Summary:
    """Encode what the cache of a work directory lacks, and finalise it.

    It works `on` some devices, by default on all GPUs, with `workers` processes that decode, by default one per core.
    """
    on = on or devices()
    workers = workers or os.cpu_count() or 1
    curated = read_curated(work)
    captions = by_variant(curated)
    about_latents = _latents(work, curated, pictures, [ImageEncoder(model, device) for device in on], settings, workers)
    about_text = _text(
        work,
        captions,
        [TextEncoder(model, settings.prompt_prefix, settings.max_tokens, device) for device in on],
        settings,
    )
    rejects = write_rejects(work, about_latents, curated)
    finalise(work, about_latents, about_text)
    return summary(work, rejects)


def _latents(
    work: Path,
    curated: pa.Table,
    pictures: Corpus,
    encoders: Sequence[ImageEncoder],
    settings: CacheSettings,
    workers: int,
) -> dict[str, Any]:
    """Encode pictures; returns the description of the latents."""
    about = latents.describe(encoders[0], settings)
    descriptions = {CacheLayout(work).latents(one): one for one in by_area(about)}
    lists = [WorkList(folder, ("image_id",), settings.shard_rows) for folder in descriptions]
    for images in lists:
        images.extend(curated.select(["image_id", "locations"]))
    writer = latents.LatentShards(pictures, encoders, descriptions, settings.batch, workers)
    shards = [shard for images in lists for shard in images.shards()]
    finish(shards, writer.write, "latents", "latents", note=lambda: busy(one.worker for one in encoders))
    return about


def _text(
    work: Path, captions: Mapping[str, pa.Table], encoders: Sequence[TextEncoder], settings: CacheSettings
) -> dict[str, Any]:
    """Encode captions; returns the description of the embeddings."""
    about = text.describe(encoders[0])
    folder = CacheLayout(work).text(about)
    if not (folder / "shared.parquet").exists():
        text.write_shared(folder / "shared.parquet", encoders[0], about)
    writer = text.TextShards(encoders, about)
    for variant, items in captions.items():
        texts = WorkList(folder / variant, ("image_id", "caption_sha"), settings.shard_rows)
        texts.extend(items)
        finish(texts.shards(), writer.write, variant, "captions", note=lambda: busy(one.worker for one in encoders))
    return about


def expected(model: Path, settings: CacheSettings) -> dict[str, dict[str, Any]]:
    """What can be said, without loading it, of the cache that `cache` makes with a model and settings.

    For `CacheReader`, which refuses one that was made otherwise.
    """
    return {
        "latents": {"areas": list(settings.areas), "weights": weights_hash(model / "vae")},
        "text": {
            "prompt_prefix": settings.prompt_prefix,
            "max_tokens": settings.max_tokens,
            "weights": weights_hash(model / "text_encoder", model / "tokenizer"),
        },
    }


def read_curated(work: Path) -> pa.Table:
    """The curated pictures: image_id, locations, captions. Raises UserError where there are none."""
    parts = sorted((work / "curated").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{work}: there is no curated dataset; run `curate run SOURCE --work {work}` first")
    columns = ["image_id", "locations", "captions"]
    return pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])


def by_variant(curated: pa.Table) -> dict[str, pa.Table]:
    """Captions (image_id, caption_sha, text) by variant, in the order of the image ids.

    Raises UserError for a variant that cannot be the name of a folder.
    """
    connection = duckdb.connect()
    connection.register("curated", curated)
    connection.execute("CREATE VIEW captions AS SELECT image_id, unnest(captions, recursive := true) FROM curated")
    connection.execute("SELECT DISTINCT variant FROM captions ORDER BY variant")
    names = [name for (name,) in connection.fetchall()]
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"caption variant {name!r}: name it with letters, digits, - and _ only")
    query = "SELECT image_id, sha256(text) AS caption_sha, text FROM captions WHERE variant = ? ORDER BY image_id"
    return {name: connection.sql(query, params=[name]).to_arrow_table() for name in names}


def summary(work: Path, rejects: pa.Table) -> Summary:
    """Count what the manifest lists."""
    manifest = CacheLayout(work).manifest
    pictures = pq.read_table(manifest / "latents.parquet", columns=["length"])
    texts = pq.read_table(manifest / "text.parquet", columns=["variant", "length", "cut"])
    return Summary(
        identity=read_about(work)["identity"],
        images=read_about(work)["images"],
        captions=Counter(texts["variant"].to_pylist()),
        cut=pc.sum(texts["cut"]).as_py() or 0,
        rejects=Counter(rejects["reason"].to_pylist()),
        bytes=sum(pc.sum(table["length"]).as_py() or 0 for table in (pictures, texts)),
    )


def report(result: Summary) -> None:
    """Print a summary."""
    console.print(
        f"cached {result.images:,} pictures and {result.captions.total():,} captions, {result.bytes / 2**20:,.1f} MiB; "
        f"identity {result.identity[:12]}",
        soft_wrap=True,
    )
    for variant, count in sorted(result.captions.items()):
        console.print(f"  {count:,} captions {variant}", soft_wrap=True)
    if result.cut:
        console.print(f"  {result.cut:,} captions are cut: they have more tokens than cache.max_tokens", soft_wrap=True)
    for reason, count in result.rejects.most_common():
        console.print(f"  {count:,} could not be encoded: {reason} (see cache/rejects.parquet)", soft_wrap=True)
