"""Lines of text found in a picture: their script, their order, which are legible, which are overlays."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LETTERS = 2
"""A line with fewer is not legible: mostly it is no text at all, but a button or an eye."""

TALL = 1.5
"""From this ratio of height to width on a line is taken to run from top to bottom, as RapidOCR does."""

SMALL, MARGIN = 0.04, 0.08
"""An overlay by its place: the line is at most this share of the picture's shorter side high, and its centre is within
this share of width or height from a border. A line is a third higher than its letters, for boxes are wide."""

OVERLAY = re.compile(
    r"https?:|\bwww\.|\b[\w-]+\.(com|net|org|jp|cn|kr|tw|tv|io|xyz|moe|pm)\b"
    r"|[@\uff20]\s?\w{2,}"
    r"|pixiv|fanbox|patreon|twitter|fantia|deviantart|artstation|instagram|gumroad|subscribestar|weibo|lofter|dlsite"
    r"|\bsample\b|\bwatermark\b|©|\(c\)\s?\w|\bcopyright\b|all rights reserved|do not repost|無断転載|転載禁止",
    re.IGNORECASE,
)
"""Sites, addresses, names of accounts, claims: words that are put on a picture, not drawn into its scene."""

_SCRIPTS = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff\ua720-\ua7ff\ufb00-\ufb06\uff21-\uff3a\uff41-\uff5a",
    "kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
}
_OF_SCRIPT = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}


@dataclass(frozen=True)
class Line:
    """A line of text."""

    text: str
    confidence: float
    corners: NDArray[np.float64]
    """(4, 2): x and y in pixels, clockwise from the upper left one."""

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The smallest and the largest x and y."""
        return self.corners.min(axis=0), self.corners.max(axis=0)

    @property
    def centre(self) -> NDArray[np.float64]:
        """x and y in pixels."""
        middle: NDArray[np.float64] = self.corners.mean(axis=0)
        return middle

    @property
    def tall(self) -> bool:
        """Whether the line runs from top to bottom."""
        low, high = self.bounds
        return bool(high[1] - low[1] >= TALL * (high[0] - low[0]))

    @property
    def thickness(self) -> float:
        """Pixels across the line, whatever its direction: about the height of its letters."""
        sides = np.linalg.norm(self.corners - np.roll(self.corners, 1, axis=0), axis=1)
        return float(sides.min())

    def is_legible(self, min_confidence: float) -> bool:
        """Whether it is sure enough what it says, and it says something."""
        return self.confidence >= min_confidence and sum(map(str.isalpha, self.text)) >= LETTERS

    def is_overlay(self, size: tuple[int, int], min_confidence: float) -> bool:
        """Whether it was put on the picture (of width and height `size`), by what it says or by its place."""
        if OVERLAY.search(self.text):
            return True
        place = self.centre / size
        outside = bool((np.minimum(place, 1 - place) <= MARGIN).any())
        return outside and self.thickness <= SMALL * min(size) and self.is_legible(min_confidence)


def script(text: str) -> str:
    """That of most letters: latin, japanese (with kana), han (without), hangul, cyrillic, other."""
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in _OF_SCRIPT.items()})
    counts["other"] = sum(map(str.isalpha, text)) - counts.total()
    kana = counts.pop("kana")
    counts["han"] += kana
    ((found, count),) = counts.most_common(1)
    if not count:
        return "other"
    return "japanese" if found == "han" and kana else found


def rows(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines as they are read: rows from top to bottom, each from left to right.

    Where most of the text runs from top to bottom, these are columns from right to left, each from top to bottom.
    """
    columns = sum(len(line.text) if line.tall else -len(line.text) for line in lines) > 0
    across, sign, along = (0, -1, 1) if columns else (1, 1, 0)
    found: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: sign * line.centre[across]):
        # In a row is what has its centre at the height of the row's first line.
        if found and found[-1][0].bounds[0][across] <= line.centre[across] <= found[-1][0].bounds[1][across]:
            found[-1].append(line)
        else:
            found.append([line])
    return [sorted(row, key=lambda line: float(line.centre[along])) for row in found]
