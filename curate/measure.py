"""What is measured on a decoded picture. All functions are pure and take the picture as `shared.images` gives it."""

import hashlib
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 512
"""Sharpness and border look at the picture scaled down to this longer side, so that they compare across sizes."""

TILES = 16
"""Flatness looks at a grid of this many tiles a side..."""

TILE = 16
"""...each of this many pixels a side."""

TOLERANCE = 8
"""Differences up to this (of 255) are noise or a gradient, not drawing."""


@dataclass(frozen=True)
class Measures:
    """One picture's numbers; the names are columns."""

    width: int
    height: int
    pixel_hash: str
    phash: int
    sharpness: float
    flatness: float
    border: float


def measure(image: Image.Image) -> Measures:
    """All measures of an RGB picture."""
    small = shrink(image)
    return Measures(
        width=image.width,
        height=image.height,
        pixel_hash=pixel_hash(image),
        phash=phash(image),
        sharpness=sharpness(small),
        flatness=flatness(image),
        border=border(small),
    )


def shrink(image: Image.Image) -> Image.Image:
    """Scale down to a longer side of at most SIDE pixels; never up."""
    scale = SIDE / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def pixel_hash(image: Image.Image) -> str:
    """Hex sha256 over width, height and RGB bytes: equal exactly when the pictures are."""
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def phash(image: Image.Image) -> int:
    """`imagehash.phash`, its 64 bits as an unsigned number (the hash's hex string read as one)."""
    return int(str(imagehash.phash(image)), 16)


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture (0..255); 0 for fewer than 3 pixels a side.

    Laplacian(x, y) = g(x+1, y) + g(x-1, y) + g(x, y+1) + g(x, y-1) - 4 g(x, y), without the outermost pixels.
    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000 (LAP4 in Pertuz et al. 2013).
    """
    grey: NDArray[np.int32] = np.asarray(image.convert("L"), dtype=np.int32)
    if min(grey.shape) < 3:
        return 0.0
    laplacian = grey[1:-1, 2:] + grey[1:-1, :-2] + grey[2:, 1:-1] + grey[:-2, 1:-1] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())


def flatness(image: Image.Image) -> float:
    """Share of the picture in which nothing is drawn, 0 to 1.

    The picture is scaled to a grid of TILES x TILES tiles; a tile is empty when the standard deviation of each of its
    channels is at most TOLERANCE. One colour, light noise and a gradient over the whole picture give 1: a tile then
    spans 1/16 of the gradient, 16 levels at most, with a deviation of 16 / sqrt(12) = 4.6. A figure on plain white
    fills every tile that an outline passes.
    """
    side = TILES * TILE
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    tiles = pixels.reshape(TILES, TILE, TILES, TILE, 3)  # row, y, column, x, channel
    return float((tiles.std(axis=(1, 3)) <= TOLERANCE).all(axis=-1).mean())


def border(image: Image.Image) -> float:
    """Share of the area in bars of one colour along the edges, 0 to 1 (1: the whole picture is of one colour).

    A row or column belongs to a bar when all its pixels are within TOLERANCE of the mean colour of the outermost one.
    """
    pixels: NDArray[np.float32] = np.asarray(image, dtype=np.float32)
    top, bottom = _bar(pixels), _bar(pixels[::-1])
    rows = pixels[top : len(pixels) - bottom].swapaxes(0, 1)
    if not rows.size:
        return 1.0
    left, right = _bar(rows), _bar(rows[::-1])
    inner: int = rows.shape[1] * max(len(rows) - left - right, 0)
    return 1.0 - inner / (image.width * image.height)


def _bar(lines: NDArray[np.float32]) -> int:
    """How many lines from the first one on are of one colour."""
    colour = lines[0].mean(axis=0)
    plain = (np.abs(lines - colour) <= TOLERANCE).all(axis=(1, 2))
    return len(plain) if plain.all() else int(plain.argmin())
