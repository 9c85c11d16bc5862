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

    @property
    def enough(self) -> tuple[int, int]:
        """How large pictures have to be decoded at least, for `shared.images.decode`."""
        return (self._scaled, 1) if self.mode == "pad" else (self._scaled, self._scaled)

    @property
    def _scaled(self) -> int:
        """The side, or the shorter one, before the middle is cut out."""
        return math.floor(self.side / self.crop)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """(side, side, 3) of an RGB picture."""
        if self.mode == "pad":
            image = _padded(image)
        width, height = self.scaled(*image.size)
        left, top = self.corner(width, height)
        image = image.resize((width, height), _FILTERS[self.interpolation])
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """The size to which a picture of this one is brought, before the middle is cut out."""
        if self.mode != "crop":
            return self._scaled, self._scaled
        return self._scaled * width // min(width, height), self._scaled * height // min(width, height)

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the middle. Halves are rounded to even, as torchvision does."""
        return round((width - self.side) / 2), round((height - self.side) / 2)


def _padded(image: Image.Image) -> Image.Image:
    left, top, _, _ = margins(*image.size)
    square = Image.new("RGB", (max(image.size), max(image.size)), "white")
    square.paste(image, (left, top))
    return square


def margins(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what makes a square of a picture."""
    across, down = max(height - width, 0), max(width - height, 0)
    return across // 2, down // 2, across - across // 2, down - down // 2
