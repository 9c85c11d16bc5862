"""`cache-latents` from its settings: what is new is encoded, then the manifest is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from shared.corpus import Corpus
from shared.device import busy
from shared.progress import console
from shared.tables import read
from shared.worklist import WorkList, finish
from train.cache import latents, text
from train.cache.autoencoder import ImageEncoder
from train.cache.curated import caption_variants, open_curated
from train.cache.error import Errors, told
from train.cache.hub import TEXT, text_hash, vae_hash
from train.cache.manifest import CacheLayout, by_area, finalise, read_about, write_rejects
from train.cache.pictures import RESIZE
from train.cache.settings import CacheSettings
from train.cache.share import Share, shared_work
from train.cache.stored import layout
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
    error: Errors
    """What int8 has cost."""


def cache(
    work: Path,
    pictures: Corpus,
    model: Path,
    settings: CacheSettings,
    on: Sequence[torch.device] | None = None,
    workers: int | None = None,
) -> Summary | None:
    """Encode what the cache of a work directory lacks, and finalise it.

    It works `on` some devices, by default on all GPUs, with `workers` processes that decode, by default one per core.
    Where a launcher has started several processes, each does its share on one GPU, and all but the first return None.
    """
    with shared_work() as share, open_curated(work) as curated:
        variants = caption_variants(curated)  # Their names are checked before hours of work.
        on = on or share.devices
        image_encoders = [ImageEncoder(model, device) for device in on]
        about_latents = _latents(work, curated, pictures, image_encoders, settings, workers or share.cores, share)
        text_encoders = [TextEncoder(model, settings.prompt_prefix, settings.max_tokens, device) for device in on]
        about_text = _text(work, curated, variants, text_encoders, settings, share)
        share.wait()
        if not share.first:
            return None
        rejects = write_rejects(work, about_latents, curated)
        finalise(work, about_latents, about_text, curated)
    return summary(work, rejects)


def _latents(
    work: Path,
    curated: duckdb.DuckDBPyConnection,
    pictures: Corpus,
    encoders: Sequence[ImageEncoder],
    settings: CacheSettings,
    workers: int,
    share: Share,
) -> dict[str, Any]:
    """Encode pictures; returns the description of the latents."""
    about = latents.describe(encoders[0], settings)
    descriptions = {CacheLayout(work).latents(one): one for one in by_area(about)}
    lists = [WorkList(folder, ("image_id",), settings.shard_rows) for folder in descriptions]
    if share.first:
        for images in lists:
            images.extend(read(curated, "SELECT image_id, locations FROM curated"))
    share.wait()
    writer = latents.LatentShards(pictures, encoders, descriptions, settings.batch, workers)
    # The same stretch of every list, for its pictures are decoded once for all areas.
    shards = [shard for images in lists for shard in share.of(images.shards())]
    note = partial(busy, [one.worker for one in encoders])
    finish(shards, writer.write, share.label("latents"), "latents", note=note)
    return about


def _text(
    work: Path,
    curated: duckdb.DuckDBPyConnection,
    variants: Sequence[str],
    encoders: Sequence[TextEncoder],
    settings: CacheSettings,
    share: Share,
) -> dict[str, Any]:
    """Encode captions; returns the description of the embeddings."""
    about = text.describe(encoders[0], settings.text_dtype)
    folder = CacheLayout(work).text(about)
    lists = {name: WorkList(folder / name, ("image_id", "caption_sha"), settings.shard_rows) for name in variants}
    if share.first:
        if not (folder / "shared.parquet").exists():
            text.write_shared(folder / "shared.parquet", encoders[0], about)
        for variant, texts in lists.items():
            query = f"SELECT image_id, caption_sha, text FROM captions WHERE variant = '{variant}' ORDER BY image_id"
            texts.extend(read(curated, query))
    share.wait()
    writer = text.TextShards(encoders, about)
    # Of all variants at once: between two, the GPUs would wait for what is still to be written.
    shards = [shard for texts in lists.values() for shard in texts.shards()]
    note = partial(busy, [one.worker for one in encoders])
    finish(share.of(shards), writer.write, share.label("captions"), "captions", note=note)
    return about


def expected(model: Path, settings: CacheSettings) -> dict[str, dict[str, Any]]:
    """What can be said, without loading it, of the cache that `cache` makes with a model and settings.

    For `CacheReader`, which refuses one that was made otherwise. Areas are not named: a cache may have more of them,
    and the reader refuses one that it lacks. Nor is a text encoder that is not in the folder: training needs none.
    """
    encoder = {"weights": text_hash(model)} if all((model / part).is_dir() for part in TEXT) else {}
    return {
        "latents": {
            "weights": vae_hash(model),
            "resize": RESIZE,
            **layout(settings.latent_dtype),
        },
        "text": {
            "prompt_prefix": settings.prompt_prefix,
            "max_tokens": settings.max_tokens,
            **encoder,
            **layout(settings.text_dtype),
        },
    }


def summary(work: Path, rejects: pa.Table) -> Summary:
    """Count what the manifest lists."""
    manifest, about = CacheLayout(work).manifest, read_about(work)
    pictures = pq.read_table(manifest / "latents.parquet", columns=["length"])
    texts = pq.read_table(manifest / "text.parquet", columns=["variant", "length", "cut"])
    return Summary(
        identity=about["identity"],
        images=about["images"],
        captions=Counter(texts["variant"].to_pylist()),
        cut=pc.sum(texts["cut"]).as_py() or 0,
        rejects=Counter(rejects["reason"].to_pylist()),
        bytes=sum(pc.sum(table["length"]).as_py() or 0 for table in (pictures, texts)),
        error=about.get("error", {}),
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
    for line in told(result.error):
        console.print(f"  {line}", soft_wrap=True)
    if result.cut:
        console.print(f"  {result.cut:,} captions are cut: they have more tokens than cache.max_tokens", soft_wrap=True)
    for reason, count in result.rejects.most_common():
        console.print(f"  {count:,} could not be encoded: {reason} (see cache/rejects.parquet)", soft_wrap=True)
