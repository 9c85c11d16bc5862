"""`cache-latents verify --reencode N`: some pictures and captions are encoded again and held against the cache."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.corpus import Corpus
from shared.images import Unreadable
from shared.progress import Meter
from shared.tensors import CorruptTensor
from train.cache.autoencoder import ImageEncoder
from train.cache.compute import default_device
from train.cache.curated import open_curated
from train.cache.hub import text_hash, vae_hash
from train.cache.int8 import BOUND
from train.cache.manifest import read_about
from train.cache.pictures import prepare
from train.cache.reader import CacheReader
from train.cache.text_encoder import TextEncoder

TOLERANCE = {"float32": 0.005, "bfloat16": 0.05}
"""Largest |again - cached| / |cached| (Euclidean norms) of a tensor, by the type in which an encoder computes: of that
which made the cache and that which is here, the larger one counts.

Stored as bfloat16, rounding alone makes up to 2^-8. Computed in bfloat16, batches of other shapes add the rounding of
some dozens of layers, 0.01 to 0.02. Another picture, model or resize filter makes more than 0.1. Stored as int8, up to
`int8.BOUND` is added.
"""


def reencoded(work: Path, pictures: Corpus, model: Path, number: int) -> list[str]:
    """What differs of `number` pictures (in every area) and as many captions, one readable line each.

    They are evenly spread over the cache. Raises UserError where the cache was made with other weights.
    """
    about = read_about(work, {"latents": {"weights": vae_hash(model)}, "text": {"weights": text_hash(model)}})
    readers = [CacheReader(work, area=area) for area in about["latents"]["areas"]]
    indices = _spread(readers[0].images, number)
    with open_curated(work) as database:
        database.register(
            "wanted", {"image_id": np.array([readers[0].image_id(int(i)) for i in indices], dtype=object)}
        )
        found = database.execute(
            "SELECT image_id, locations, captions FROM curated SEMI JOIN wanted USING (image_id)"
        ).fetchall()
    curated = {image_id: (locations, captions) for image_id, locations, captions in found}
    problems: list[str] = []
    with Meter("encode again", 2 * len(indices), "tensors") as meter:
        problems += _pictures(readers, indices, curated, pictures, model, meter)
        problems += _captions(readers[0], indices, curated, model, meter)
    return problems


def _spread(images: int, number: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, images - 1, min(number, images)).astype(np.int64))


Curated = dict[str, tuple[list[str], list[dict[str, str]]]]


def _pictures(
    readers: list[CacheReader],
    indices: NDArray[np.int64],
    curated: Curated,
    pictures: Corpus,
    model: Path,
    meter: Meter,
) -> Iterator[str]:
    encoder = ImageEncoder(model, default_device())
    limit = _limit(readers[0].latent_settings, encoder.description)
    for index in map(int, indices):
        image_id = readers[0].image_id(index)
        for reader in readers:
            name = f"image {image_id}, area {reader.area}"
            try:
                locations, _ = curated[image_id]
                source = prepare(pictures, image_id, locations, reader.area, reader.multiple)
                yield from _compare(name, encoder.encode([source.pixels])[0], reader.latent(index), limit)
            except KeyError:
                yield f"{name}: is not in curated any more"
            except (Unreadable, CorruptTensor) as problem:
                yield f"{name}: {problem}"
        meter.advance()


def _captions(
    reader: CacheReader, indices: NDArray[np.int64], curated: Curated, model: Path, meter: Meter
) -> Iterator[str]:
    about = reader.text_settings
    encoder = TextEncoder(model, about["prompt_prefix"], about["max_tokens"], default_device())
    limit = _limit(about, encoder.description)
    for index in map(int, indices):
        image_id = reader.image_id(index)
        texts = {caption["variant"]: caption["text"] for caption in curated.get(image_id, ([], []))[1]}
        for variant in reader.variants(index):
            name = f"image {image_id}, caption {variant}"
            if variant not in texts:
                yield f"{name}: is not in curated any more"
                continue
            try:
                again = encoder.encode([texts[variant]])[0]
                yield from _compare(name, again, reader.text(index, variant), limit)
            except CorruptTensor as problem:
                yield f"{name}: {problem}"
        meter.advance()


def _limit(about: Mapping[str, Any], encoder: Mapping[str, Any]) -> float:
    """The largest difference allowed between tensors of a cache and those of an encoder, by their descriptions."""
    computed = max(TOLERANCE[description["compute"]] for description in (about, encoder))
    return computed + (BOUND if about["dtype"] == "int8" else 0)


def _compare(name: str, again: Tensor, cached: Tensor, limit: float) -> Iterator[str]:
    if again.shape != cached.shape:
        yield f"{name}: encoded again it is {tuple(again.shape)}, in the cache {tuple(cached.shape)}"
        return
    error = float((again.float() - cached.float()).norm() / cached.float().norm().clamp_min(1e-12))
    if not error <= limit:
        yield f"{name}: encoded again it differs by {error:.4f} of its norm, more than {limit:.3f}"
