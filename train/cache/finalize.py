"""`cache-latents finalize`: the manifest from the shards that are there, whoever wrote them, without a model."""

from pathlib import Path

from shared.errors import UserError
from shared.tensors import CorruptTensor
from train.cache.counts import miscounted_parts
from train.cache.curated import open_curated
from train.cache.existing import the_only
from train.cache.manifest import CacheLayout, finalise, write_rejects
from train.cache.settings import CacheSettings


def finalize(work: Path, settings: CacheSettings, model: Path | None = None) -> tuple[str, list[str]]:
    """Write manifest and rejects; returns the identity, and which shards are missing or lack rows, one line each.

    `model` is the folder that is meant, where shards of several lie side by side. Raises UserError where there are no
    shards of these settings, and for one that is damaged.
    """
    layout = CacheLayout(work)
    latents, text = the_only(layout, settings, model)
    try:
        with open_curated(work) as curated:
            write_rejects(work, latents, curated)
            identity = finalise(work, latents, text, curated)
    except CorruptTensor as error:
        raise UserError(f"{error}\ndelete that file and run `cache-latents`") from None
    return identity, list(miscounted_parts(layout, {"latents": latents, "text": text}, set()))
