"""JPEGs that the GPU decodes (nvJPEG, through torchvision) and brings to the size of the model's input.

Next to a model, the processors are what is short: an H100 embeds twice as many pictures as its sixteen cores decode.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.images import decode
from shared.vision.geometry import Geometry, margins


def squares(files: Sequence[NDArray[np.uint8]], geometry: Geometry, device: torch.device) -> Tensor:
    """(n, side, side, 3), bytes, of the bytes of JPEGs for which `is_plain_jpeg` holds.

    The current stream must not be needed by others. What nvJPEG refuses is decoded by the processor.
    """
    try:
        return torch.stack([square(picture, geometry) for picture in _decoded(files, device)])
    except RuntimeError:
        if len(files) > 1:  # It does not say which.
            return torch.cat([squares([file], geometry, device) for file in files])
    pixels = geometry.apply(decode(files[0].tobytes(), max_pixels=2**62).image)
    return torch.from_numpy(pixels)[None].to(device)


def _decoded(files: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    """Pictures (3, height, width), bytes."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Later versions announce that another package will do it.
        pictures: list[Tensor] = decode_jpeg([torch.from_numpy(file) for file in files], ImageReadMode.RGB, device)
    return pictures


def square(picture: Tensor, geometry: Geometry) -> Tensor:
    """(side, side, 3) of a picture (3, height, width), both bytes: to rounding what `Geometry.apply` makes of it."""
    if geometry.mode == "pad":
        picture = _padded(picture)
    width, height = geometry.scaled(picture.shape[2], picture.shape[1])
    left, top = geometry.corner(width, height)
    # One direction, then the other, with bytes between them as in Pillow; that first which leaves less.
    scaled = picture[None].float()
    across, down = (picture.shape[1], width), (height, picture.shape[2])
    for size in min(across, down, key=math.prod), (height, width):
        scaled = functional.interpolate(scaled, size, mode=geometry.interpolation, antialias=True)
        scaled = scaled.round_().clamp_(0, 255)
    middle = scaled[0, :, top : top + geometry.side, left : left + geometry.side]
    return middle.byte().permute(1, 2, 0)


def _padded(picture: Tensor) -> Tensor:
    left, top, right, bottom = margins(picture.shape[2], picture.shape[1])
    return functional.pad(picture, (left, right, top, bottom), value=255)
