"""Each picture's own resolution: its shape is kept, its area is bounded, and nothing is enlarged."""

from dataclasses import dataclass
from itertools import product

MAX_TOKENS = 512
"""Longest side of an image in tokens: the transformer has no positions beyond."""


@dataclass(frozen=True)
class Fit:
    """How a picture becomes the autoencoder's input."""

    width: int
    height: int
    """Pixels, multiples of what was asked for."""
    crop: tuple[float, float, float, float]
    """The part of the source that is scaled to that size: left, top, right, bottom in source pixels."""


def fit(width: int, height: int, area: int, multiple: int) -> Fit | None:
    """The resolution for a picture of `width` x `height`, or None where it is smaller than `multiple`.

    Both sides are multiples of `multiple`, their product is at most `area` squared, and neither is larger than
    the source's, so that scaling never enlarges. Among the sizes next to the exact one, the one that crops least
    is taken, then the largest. The picture is scaled to cover that size; what juts out is cut off evenly.
    """
    scale = min(1.0, area / (width * height) ** 0.5, MAX_TOKENS * multiple / max(width, height))
    steps = [int(side * scale / multiple) for side in (width, height)]
    sizes = [
        (columns * multiple, rows * multiple)
        for columns, rows in product(*((max(1, step), step + 1) for step in steps))
    ]
    allowed = [
        (w, h)
        for w, h in sizes
        if w <= width and h <= height and w * h <= area**2 and max(w, h) <= MAX_TOKENS * multiple
    ]
    if not allowed:
        return _slim(width, height, area, multiple)
    target = max(allowed, key=lambda size: (_kept(width, height, *size), size[0] * size[1]))
    return Fit(*target, _crop(width, height, *target))


def _slim(width: int, height: int, area: int, multiple: int) -> Fit | None:
    """For pictures so long and thin that one side is a single step: the other side is cut to fit."""
    if min(width, height) < multiple:
        return None
    longest = min(area**2 // multiple, MAX_TOKENS * multiple, max(width, height)) // multiple * multiple
    target = (longest, multiple) if width > height else (multiple, longest)
    return Fit(*target, _crop(width, height, *target))


def _kept(width: int, height: int, target_width: int, target_height: int) -> float:
    """Share of the source that is left when it covers the target."""
    ratio = (width / height) / (target_width / target_height)
    return round(min(ratio, 1 / ratio), 9)


def _crop(width: int, height: int, target_width: int, target_height: int) -> tuple[float, float, float, float]:
    """The centred part of the source that has the target's shape."""
    scale = max(target_width / width, target_height / height)
    # Rounding may put the edge a hair outside the picture.
    left, top = max(0.0, (width - target_width / scale) / 2), max(0.0, (height - target_height / scale) / 2)
    return (left, top, width - left, height - top)
