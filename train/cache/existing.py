"""Which shards there are: what their own descriptions say, without a manifest and without a model."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.fingerprint import differences, fingerprint
from shared.tensors import CorruptTensor, description
from train.cache.hub import text_hash, vae_hash
from train.cache.manifest import CacheLayout
from train.cache.settings import CacheSettings

About = dict[str, Any]


def latents_of(layout: CacheLayout, settings: CacheSettings, area: int, model: Path | None) -> list[About]:
    """The kinds of latents of an area of which there are shards; of a model folder, where one is given."""
    weights = {} if model is None else {"weights": vae_hash(model)}
    return _matching(layout.root, "latents/*/part-*.parquet", {"area": area, "dtype": settings.latent_dtype} | weights)


def text_of(layout: CacheLayout, settings: CacheSettings, model: Path | None) -> list[About]:
    """The kinds of embeddings of which there are shards, as `latents_of`."""
    weights = {} if model is None else {"weights": text_hash(model)}
    wanted = {
        "prompt_prefix": settings.prompt_prefix,
        "max_tokens": settings.max_tokens,
        "dtype": settings.text_dtype,
    }
    return _matching(layout.root, "text/*/shared.parquet", wanted | weights)


def the_only(layout: CacheLayout, settings: CacheSettings, model: Path | None) -> tuple[About, About]:
    """The descriptions of latents and text, as `manifest.finalise` takes them, of shards made with some settings.

    Raises UserError where there are none, or shards of several kinds.
    """
    kinds: dict[str, list[About]] = defaultdict(list)
    for area in settings.areas:
        for about in latents_of(layout, settings, area, model):
            common = {key: value for key, value in about.items() if key != "area"}
            kinds[fingerprint(common)].append({**common, "areas": list(settings.areas)})
    latents = [abouts[0] for abouts in kinds.values() if len(abouts) == len(settings.areas)]
    return (
        _one(layout.root / "latents", latents, f"areas {list(settings.areas)}"),
        _one(layout.root / "text", text_of(layout, settings, model), f"{settings.prompt_prefix=}"),
    )


def _matching(root: Path, pattern: str, wanted: Mapping[str, Any]) -> list[About]:
    """What the shards of each folder were made with, by the first of them that can be read, as far as it is wanted."""
    found: dict[Path, About] = {}
    for shard in sorted(root.glob(pattern)):
        if shard.parent not in found:
            try:
                about = description(shard)
            except (CorruptTensor, ValueError):
                continue
            found[shard.parent] = {key: value for key, value in about.items() if key != "rejects"}
    return [about for about in found.values() if wanted.items() <= about.items()]


def _one(folder: Path, kinds: list[About], wanted: str) -> About:
    if not kinds:
        raise UserError(f"{folder}: there are no shards with {wanted} of this model; run `cache-latents` first")
    if len(kinds) > 1:
        lines = [f"  {line}" for line in differences(kinds[0], kinds[1])]
        raise UserError(
            "\n".join([f"{folder}: shards of {len(kinds)} kinds; say which with --model, or move others away:", *lines])
        )
    return kinds[0]
