"""What is stored of a picture so that two can be compared without decoding them again: a thumbnail, squashed square."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LUMA, CHROMA = 64, 32
"""Pixels a side of the planes: Y, and half as many for Cb and Cr (JPEG's 4:2:0, for the same reason)."""

SIZE = LUMA * LUMA + 2 * CHROMA * CHROMA
"""Bytes of a descriptor: 6,144, or 57 GiB for 10 million pictures."""


def describe(image: Image.Image) -> bytes:
    """The descriptor of an RGB picture of any size: the planes Y, Cb, Cr (JFIF), row by row.

    Every pixel is a mean over the area it covers, so it matters little at which size the picture comes.
    """
    thumbnail = image.resize((LUMA, LUMA), Image.Resampling.BICUBIC, reducing_gap=2.0)
    y, *chroma = thumbnail.convert("YCbCr").split()
    return y.tobytes() + b"".join(plane.reduce(LUMA // CHROMA).tobytes() for plane in chroma)


def planes(descriptors: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Luma (n, LUMA, LUMA), 0 to 255, and chroma (n, 2, CHROMA, CHROMA), -128 to 127, of descriptors (n, SIZE)."""
    luma, chroma = np.split(descriptors, [LUMA * LUMA], axis=1)
    return (
        luma.reshape(-1, LUMA, LUMA).astype(np.float32),
        chroma.reshape(-1, 2, CHROMA, CHROMA).astype(np.float32) - 128,
    )
