"""What is measured on a decoded picture.

Everything but the pixel hash is measured on the working picture, a reduction to a few hundred pixels, for which a JPEG
is not even decoded at full size. All pixels are hashed only where nothing else could find copies.
"""

import hashlib
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images import Picture, decode

SIDE = 256
"""The longer side of a working picture has at least this many pixels, and less than twice as many."""

TILES = 16
"""Flatness looks at a grid of this many tiles a side..."""

TILE = 16
"""...each of this many samples a side."""

TOLERANCE = 8
"""Differences up to this (of 255) are noise or a gradient, not drawing."""

BLANK = 0.9
"""From this flatness on there is so little to see that the perceptual hash is noise."""


@dataclass(frozen=True)
class Measures:
    """One picture's numbers; the names are columns."""

    width: int
    height: int
    """Of the whole picture, upright."""
    pixel_hash: str | None
    """None but for nearly blank pictures."""
    phash: int
    sharpness: float
    flatness: float
    border: float


def read(data: bytes, max_pixels: int) -> tuple[Picture, Image.Image, Measures]:
    """Decode a picture as far as needed and measure it: the picture, its working picture, its measures.

    Copies with the same pixels are searched by the perceptual hash, which says nothing of a nearly blank picture: its
    pixels are hashed here, and those of the others in the stage `pixels`, where it finds a companion.

    Raises Unreadable.
    """
    picture = decode(data, max_pixels, (SIDE, 1))
    working = shrink(picture)
    grey, flat = working.convert("L"), flatness(working)
    hashed = None
    if flat >= BLANK:
        hashed = pixel_hash((picture if picture.scale == 1 else decode(data, max_pixels)).image)
    measures = Measures(*picture.size, hashed, phash(grey), sharpness(grey), flat, border(working))
    return picture, working, measures


def shrink(picture: Picture) -> Image.Image:
    """The working picture: reduced by the largest power of two that leaves the longer side at least SIDE pixels.

    Each of its pixels is the mean of a square: a JPEG comes out alike whether its decoder did that or we do.
    """
    factor = 1 << max(1, max(picture.size) // SIDE).bit_length() - 1
    return picture.image.reduce(factor // picture.scale)


def pixel_hash(image: Image.Image) -> str:
    """Hex sha256 over width, height and RGB bytes: equal exactly when the pictures are."""
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def phash(image: Image.Image) -> int:
    """`imagehash.phash`, its 64 bits as an unsigned number (the hash's hex string read as one).

    Of a working picture that was reduced, it is 0 to 2 bits from that of the whole picture.
    """
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes())


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture (0..255); 0 for fewer than 3 pixels a side.

    The picture is scaled down to a longer side of SIDE pixels, so that the numbers compare across sizes.

    Laplacian(x, y) = g(x+1, y) + g(x-1, y) + g(x, y+1) + g(x, y-1) - 4 g(x, y), without the outermost pixels.
    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000 (LAP4 in Pertuz et al. 2013).
    """
    grey: NDArray[np.int16] = np.asarray(_fit(image.convert("L"))).astype(np.int16)
    if min(grey.shape) < 3:
        return 0.0
    laplacian = grey[1:-1, 2:] + grey[1:-1, :-2]
    laplacian += grey[2:, 1:-1]
    laplacian += grey[:-2, 1:-1]
    laplacian -= 4 * grey[1:-1, 1:-1]
    return float(laplacian.astype(np.float32).var(dtype=np.float64))


def _fit(image: Image.Image) -> Image.Image:
    """Scaled down to a longer side of at most SIDE pixels; never up."""
    scale = SIDE / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def flatness(image: Image.Image) -> float:
    """Share of the picture in which nothing is drawn, 0 to 1.

    The picture is sampled on a grid of TILES x TILES tiles; a tile is empty when the standard deviation of each of its
    channels is at most TOLERANCE. One colour, light noise and a gradient over the whole picture give 1: a tile then
    spans 1/16 of the gradient, 16 levels at most, with a deviation of 16 / sqrt(12) = 4.6. A figure on plain white
    fills every tile that an outline passes.
    """
    side, count = TILES * TILE, TILE * TILE
    pixels = np.asarray(image.resize((side, side), Image.Resampling.NEAREST)).astype(np.float32)
    sums, squares = _tile_sums(pixels), _tile_sums(np.square(pixels, out=pixels))
    # Whole numbers below 2^24, which float32 holds exactly, but for the products.
    empty = squares / count - np.square(sums / count) <= TOLERANCE**2
    return float(empty.all(axis=-1).mean())


def _tile_sums(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(TILES * TILE, TILES * TILE, 3) to (TILES, TILES, 3), adding up what lies in a tile."""
    columns = pixels.reshape(TILES, TILE, -1).sum(axis=1)  # Rows first: this adds long stretches of memory.
    sums: NDArray[np.float32] = columns.reshape(TILES, TILES, TILE, 3).sum(axis=2)
    return sums


def border(image: Image.Image) -> float:
    """Share of the area in bars of one colour along the edges, 0 to 1 (1: the whole picture is of one colour).

    A row or column belongs to a bar when all its pixels are within TOLERANCE of the mean colour of the outermost one.
    """
    pixels: NDArray[np.uint8] = np.asarray(image)
    top, bottom = _bar(pixels), _bar(pixels[::-1])
    rows = pixels[top : len(pixels) - bottom].swapaxes(0, 1)
    if not rows.size:
        return 1.0
    left, right = _bar(rows), _bar(rows[::-1])
    inner: int = rows.shape[1] * max(len(rows) - left - right, 0)
    return 1.0 - inner / (image.width * image.height)


def _bar(lines: NDArray[np.uint8]) -> int:
    """How many lines from the first one on are of one colour."""
    colour = lines[0].mean(axis=0)
    low, high = (
        np.ceil(colour - TOLERANCE).clip(0).astype(np.uint8),
        np.floor(colour + TOLERANCE).clip(max=255).astype(np.uint8),
    )
    found, step = 0, 1
    while found < len(lines):  # Few pictures have bars, so most are done after one line.
        block = lines[found : found + step]
        plain = ((block >= low) & (block <= high)).all(axis=(1, 2))
        if not plain.all():
            return found + int(plain.argmin())
        found, step = found + len(block), 2 * step
    return len(lines)
