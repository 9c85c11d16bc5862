"""From an image id to the pixels the autoencoder sees."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.corpus import Corpus
from shared.files import os_error
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
    image = decode(_read(corpus, image_id, locations)).image
    size = fit(*image.size, area, multiple)
    if size is None:
        raise Unreadable("too_small", f"{image.width} x {image.height} is less than {multiple} px on a side")
    scaled = image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=size.crop)
    return Prepared(np.asarray(scaled), size, image.size)


def _read(corpus: Corpus, image_id: str, locations: Sequence[str]) -> bytes:
    """The bytes of the first copy that is still what it was."""
    problem = Unreadable("unreadable", "no location")
    for location in locations:
        try:
            data = corpus.read(location)
        except OSError as error:
            problem = Unreadable("unreadable", f"{location}: {os_error(error)}")
            continue
        if hashlib.sha256(data).hexdigest() == image_id:
            return data
        problem = Unreadable("changed", f"{location} is not the file any more that was curated")
    raise problem
