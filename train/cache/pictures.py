"""From an image id to the pixels the autoencoder sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.corpus import Corpus
from shared.images import Unreadable, decode
from train.cache.resolution import Fit, fit

RESIZE = "lanczos"
"""Pillow's, which widens its support when it scales down and so is antialiased."""


@dataclass(frozen=True)
class Prepared:
    """A picture at its own resolution."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    fit: Fit
    original_size: tuple[int, int]
    """Width and height of the source, upright."""


def prepare(corpus: Corpus, image_id: str, locations: Sequence[str], area: int, multiple: int) -> Prepared:
    """Read, decode and scale a picture.

    Raises Unreadable where no copy of the file can be read (unreadable), where the file is not the one that was
    curated any more (changed), where the picture is too small, and for the reasons of `decode`.
    """
    return scaled(decode(corpus.read_picture(image_id, locations)).image, area, multiple)


def scaled(image: Image.Image, area: int, multiple: int) -> Prepared:
    """Scale a picture; raises Unreadable where it is too small."""
    size = fit(*image.size, area, multiple)
    if size is None:
        raise Unreadable("too_small", f"{image.width} x {image.height} is less than {multiple} px on a side")
    pixels = image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=size.crop)
    return Prepared(np.asarray(pixels), size, image.size)
