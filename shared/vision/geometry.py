"""From a picture of any size to the input of a model."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Interpolation = Literal["bicubic", "bilinear"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Geometry:
    """How pictures become squares of `side` pixels, with Pillow's filters, which are antialiased."""

    side: int
    mode: Literal["crop", "squash", "pad"]
    """crop: the shorter side becomes `side`, the middle of the other one is kept (torchvision: Resize, CenterCrop).
    squash: both sides become `side`. pad: white is added to make a square, which becomes `side`."""
    interpolation: Interpolation
    crop: float = 1.0
    """Pictures are made larger by this, and the middle is cut out: timm's `crop_pct`."""
    exact: bool = False
    """Decode JPEGs in full. Without it they are decoded at the smallest scale that is no smaller than the input: many
    times as fast, and each pixel is up to a few levels from what it would be."""

    @property
    def enough(self) -> tuple[int, int] | None:
        """How large pictures have to be decoded, for `shared.images.decode`."""
        if self.exact:
            return None
        return (self._scaled, 1) if self.mode == "pad" else (self._scaled, self._scaled)

    @property
    def _scaled(self) -> int:
        """The side, or the shorter one, before the middle is cut out."""
        return math.floor(self.side / self.crop)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """(side, side, 3) of an RGB picture."""
        width, height = self._scaled, self._scaled
        if self.mode == "crop":
            width, height = (self._scaled * length // min(image.size) for length in image.size)
        if self.mode == "pad":
            image = _padded(image)
        image = image.resize((width, height), _FILTERS[self.interpolation])
        # Halves are rounded to even, as torchvision does.
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))


def _padded(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
