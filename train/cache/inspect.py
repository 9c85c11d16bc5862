"""`cache-latents inspect`: one picture of a cache, its source beside what its latent decodes to, and its captions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.corpus import Corpus
from shared.errors import UserError
from shared.files import atomic_file
from shared.images import Unreadable
from train.cache.autoencoder import decode, load_autoencoder
from train.cache.curated import open_curated
from train.cache.error import Errors, told
from train.cache.hub import vae_hash
from train.cache.pictures import Prepared, prepare
from train.cache.reader import CacheReader
from train.cache.sheet import Caption, sheet


@dataclass(frozen=True)
class Inspected:
    """A picture of the cache."""

    image_id: str
    location: str
    area: int
    source: Prepared
    decoded: NDArray[np.uint8]
    """(height, width, 3), of the size of the source's pixels."""
    latent: tuple[int, ...]
    """Channels, height, width."""
    captions: tuple[Caption, ...]
    error: Errors
    """What int8 has cost, in the whole cache."""

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio of the decoded picture in dB: 10 log10(255^2 / mean squared error)."""
        error = np.mean((self.source.pixels.astype(np.float64) - self.decoded) ** 2)
        return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def inspect(work: Path, pictures: Corpus, model: Path, which: str, area: int | None = None) -> Inspected:
    """Read and decode a picture, named by its index, its image id or the beginning of it.

    Raises UserError where there is no such picture in the cache, where its file cannot be read any more, and where the
    cache was made with another autoencoder.
    """
    reader = CacheReader(work, {"latents": {"weights": vae_hash(model)}}, area)
    index = find(reader, which)
    image_id = reader.image_id(index)
    with open_curated(work) as curated:
        row = curated.execute("SELECT locations, captions FROM curated WHERE image_id = ?", [image_id]).fetchone()
    if row is None:
        raise UserError(f"image {image_id}: is in the cache, but not in {work}/curated; run `cache-latents` again")
    locations, captions = row
    texts = {caption["variant"]: caption["text"] for caption in captions}
    try:
        source = prepare(pictures, image_id, locations, reader.area, reader.multiple)
    except Unreadable as problem:
        raise UserError(f"image {image_id}: {problem}; say where the pictures are with --source") from None
    latent = reader.latent(index)
    return Inspected(
        image_id=image_id,
        location=locations[0],
        area=reader.area,
        source=source,
        decoded=decode(load_autoencoder(model / "vae", torch.float32), latent),
        latent=tuple(latent.shape),
        captions=tuple(
            Caption(name, texts.get(name, ""), reader.text_tokens(index, name)) for name in reader.variants(index)
        ),
        error=reader.error,
    )


def find(reader: CacheReader, which: str) -> int:
    """Index of an image. A number below the number of images is an index, anything else the beginning of an id.

    Raises UserError where none or several begin so.
    """
    if which.isdecimal() and int(which) < reader.images:
        return int(which)
    found = reader.starting_with(which)
    if len(found) != 1:
        several = ", ".join(reader.image_id(index) for index in found[:3])
        raise UserError(
            f"{which}: {len(found):,} images of the cache have an id that begins so"
            + (f" ({several} ...); give more of it" if several else f"; indices go from 0 to {reader.images - 1}")
        )
    return found[0]


def write(found: Inspected, path: Path) -> None:
    """Write the sheet of a picture as PNG."""
    source, (left, top, right, bottom) = found.source, found.source.fit.crop
    width, height = source.original_size
    with atomic_file(path) as temporary:
        sheet(
            title=found.image_id,
            subtitle="\n".join([found.location, *told(found.error)]),
            pictures=(
                (
                    Image.fromarray(source.pixels),
                    "source",
                    f"{width} x {height} px, crop ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f})",
                ),
                (
                    Image.fromarray(found.decoded),
                    "decoded latent",
                    f"{source.fit.width} x {source.fit.height} px for area {found.area}, "
                    f"latent {' x '.join(map(str, found.latent))}, PSNR {found.psnr:.1f} dB",
                ),
            ),
            captions=found.captions,
        ).save(temporary, format="PNG")
