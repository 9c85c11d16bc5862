"""Whether two pictures are copies of each other, decided on their descriptors.

A copy may be encoded again, scaled, cropped a little, brighter or darker, or carry a mark in a corner or a strip along
an edge. The darker picture is laid on the brighter one and lit like it. What is still different, beyond what
compression and interpolation do, was changed on purpose: then the two are variants, and both should stay. When in
doubt they are variants, too: a copy too many costs little, a picture dropped for another is lost.

The verdict on (a, b) is that on (b, a), and does not depend on the other pairs of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.dedupe.align import WHOLE, Floats, align, grown, inside, steepness
from curate.dedupe.descriptor import CHROMA, LUMA
from curate.dedupe.light import FREE, Planes, excess, fit, light, lit, tolerance

UNRELATED, VARIANT, DUPLICATE = 0, 1, 2
"""Kinds of pairs, from far to near."""

NUMBERS = ("difference", "agreement", "overlap", "gain")
"""Names of the numbers behind a verdict.

difference: the largest one at any place, outside of marks and strips, in units of what a copy may differ by, so that up
to 1 is a duplicate; agreement: the share of what is drawn that looks the same; overlap: the area that both show, as a
share of the picture that shows more; gain: what the darker picture is multiplied by to look like the other.
"""

CHUNK = 32
"""Pairs that are compared at a time: half a megabyte per plane, so that they stay in the cache. 16 and 64 are 10 %
slower."""

RELIT, MOST_RELIT = 2.5, 1.5
"""In another light more may differ than a fit explains. What a copy may differ by grows with the change of the gain,
RELIT times as fast, but to MOST_RELIT times as much at most."""

MARGIN = 1.6
"""Pixels along the edges that are not looked at: what lies beyond the edge of a crop is mixed into them."""

MOVED = 0.25 / LUMA
"""A smaller change of the window is no reason to look again."""

ASPECT = 0.02
"""Tolerance of the logarithm of the aspect ratio of what aligned pictures show, besides a pixel of rounding. Aligned
crops by up to 6 % are within 0.008."""

OVERLAP = 0.6
"""A crop by 10 % on all four sides leaves 0.64."""

RELATED = 0.5
"""Agreement of variants at least: it is less than this for 99.7 % of unrelated figures with near hashes, and for less
than 1 % of variants."""

DRAWN = 12.0
"""Levels per pixel by which a picture rises where something is drawn."""

EDGE, CORNER, MARK = 8, 29, 140
"""A strip lies within this many pixels of an edge (12 %), a mark (signature, badge) in a corner of EDGE by CORNER
pixels (45 %), and it covers at most MARK pixels (3.4 %): lines of text as sites write them cover up to 3 %."""

TEXT = 0.6
"""The share of a strip that its text may cover..."""

EXPLAINED = 0.5
"""...and the share of its differences that must be gone in a light of its own, which those of clothes are not."""


@dataclass(frozen=True)
class Verdicts:
    """What `compare` says about n pairs."""

    kind: NDArray[np.uint8]
    """UNRELATED, VARIANT or DUPLICATE (n)."""
    numbers: dict[str, Floats]
    """By the names of NUMBERS, each (n)."""

    def take(self, places: NDArray[np.int64]) -> "Verdicts":
        """Those of some pairs."""
        return Verdicts(self.kind[places], {name: values[places] for name, values in self.numbers.items()})

    @staticmethod
    def concatenate(parts: Sequence["Verdicts"]) -> "Verdicts":
        """Those of several batches."""
        kinds = [np.empty(0, np.uint8), *(part.kind for part in parts)]
        empty = np.empty(0, np.float32)
        numbers = {name: np.concatenate([empty, *(part.numbers[name] for part in parts)]) for name in NUMBERS}
        return Verdicts(np.concatenate(kinds), numbers)

    def improve(self, places: NDArray[np.int64], others: "Verdicts") -> None:
        """Replace those at some places by others that are nearer, or as near and with a higher agreement."""
        mine = self.take(places)
        higher = others.numbers["agreement"] > mine.numbers["agreement"]
        better = (others.kind > mine.kind) | ((others.kind == mine.kind) & higher)
        self.kind[places[better]] = others.kind[better]
        for name in NUMBERS:
            self.numbers[name][places[better]] = others.numbers[name][better]


def compare(
    a: NDArray[np.uint8], b: NDArray[np.uint8], sizes_a: NDArray[np.int32], sizes_b: NDArray[np.int32]
) -> Verdicts:
    """Compare descriptors a with b, both (n, SIZE), of pictures with these widths and heights, both (n, 2)."""
    chunks = [slice(start, start + CHUNK) for start in range(0, len(a), CHUNK)]
    return Verdicts.concatenate([_compare(a[i], b[i], sizes_a[i], sizes_b[i]) for i in chunks])


def _compare(
    a: NDArray[np.uint8], b: NDArray[np.uint8], sizes_a: NDArray[np.int32], sizes_b: NDArray[np.int32]
) -> Verdicts:
    """First as they are; then, those that are no duplicates so, aligned."""
    swap = _brighter(a, b)[:, None]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    sizes_a, sizes_b = np.where(swap, sizes_b, sizes_a), np.where(swap, sizes_a, sizes_b)
    dark, bright = Planes.of(a), Planes.of(b)
    verdicts = _judge(dark, bright, np.tile(WHOLE, (len(a), 1)), sizes_a, sizes_b)
    rest = np.flatnonzero(verdicts.kind != DUPLICATE)
    windows = align(dark.luma[rest], bright.luma[rest])
    moved = (np.abs(windows - WHOLE) >= MOVED).any(axis=1)
    rest, windows = rest[moved], windows[moved]
    if len(rest):
        aligned = dark.take(rest).window(windows)
        verdicts.improve(rest, _judge(aligned, bright.take(rest), windows, sizes_a[rest], sizes_b[rest]))
    return verdicts


def _brighter(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which a are brighter than their b; equally bright ones are ordered by their bytes."""
    sum_a, sum_b = (x[:, : LUMA * LUMA].sum(axis=1, dtype=np.int64) for x in (a, b))
    first = np.argmax(a != b, axis=1)[:, None]
    larger = np.take_along_axis(a, first, axis=1)[:, 0] > np.take_along_axis(b, first, axis=1)[:, 0]
    brighter: NDArray[np.bool_] = (sum_a > sum_b) | ((sum_a == sum_b) & larger)
    return brighter


def _judge(a: Planes, b: Planes, windows: Floats, sizes_a: NDArray[np.int32], sizes_b: NDArray[np.int32]) -> Verdicts:
    """Compare planes that lie on each other; a are windows of the pictures with sizes_a."""
    lights = light(a, b, inside(windows, CHROMA))
    bright, mask = lit(a, lights), inside(windows, LUMA, MARGIN)
    doubt = np.minimum(1 + RELIT * np.abs(lights[:, 0] - 1), MOST_RELIT).astype(np.float32)
    differences = excess(bright, b) * mask / doubt[:, None, None]
    forgiven = _forgiven(bright.planes, b, differences, mask)
    differences *= ~forgiven[:, None, None] | (differences <= 1)
    difference = differences.max(axis=(1, 2))
    drawn = mask * (np.maximum(grown(steepness(bright.planes.luma)), grown(steepness(b.luma))) >= DRAWN)
    agreement = (drawn * (differences <= 1)).sum(axis=(1, 2)) / np.maximum(drawn.sum(axis=(1, 2)), 1)
    overlap = _overlap(windows)
    copy = (difference <= 1) & (overlap >= OVERLAP) & _same_aspect(windows, sizes_a, sizes_b)
    kind = np.where(copy, DUPLICATE, np.where(agreement >= RELATED, VARIANT, UNRELATED)).astype(np.uint8)
    numbers = (difference, agreement, overlap, lights[:, 0])
    return Verdicts(kind, dict(zip(NUMBERS, (x.astype(np.float32) for x in numbers), strict=True)))


def _forgiven(a: Planes, b: Planes, differences: Floats, mask: Floats) -> NDArray[np.bool_]:
    """Pairs that differ along the upper and the lower edge only, along each by no more than a mark or a strip.

    Two marks along the same edge are too many: the shoulders of other clothes look like that.
    """
    bad = differences > 1
    forgiven: NDArray[np.bool_] = bad[:, EDGE:-EDGE].sum(axis=(1, 2)) == 0
    for zone in slice(0, EDGE), slice(-EDGE, None):
        rest = np.flatnonzero(forgiven & ~_marked(bad[:, zone]))
        forgiven[rest] = _stripped(a.take(rest), b.take(rest), zone, bad[rest][:, zone], mask[rest][:, zone])
    return forgiven


def _marked(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Edges (n, EDGE, LUMA) along which nothing is bad, or a small mark in one corner."""
    left, right = (bad[:, :, corner].sum(axis=(1, 2)) for corner in (slice(0, CORNER), slice(-CORNER, None)))
    all_ = bad.sum(axis=(1, 2))
    marked: NDArray[np.bool_] = (all_ <= MARK) & (all_ == np.maximum(left, right))
    return marked


def _stripped(a: Planes, b: Planes, zone: slice, bad: NDArray[np.bool_], mask: Floats) -> NDArray[np.bool_]:
    """Pairs whose rows `zone`, of which `bad` and `mask` are, differ by a half transparent strip.

    Such a strip is another light on each of its rows; text may be written on it.
    """
    strip = bad.any(axis=2, keepdims=True) * mask
    after = ((_left_in_own_light(a, b, zone, mask) > 1) * strip).sum(axis=(1, 2))
    explained, text = after <= EXPLAINED * bad.sum(axis=(1, 2)), after <= TEXT * strip.sum(axis=(1, 2))
    stripped: NDArray[np.bool_] = explained & text
    return stripped


def _left_in_own_light(a: Planes, b: Planes, zone: slice, mask: Floats) -> Floats:
    """The differences (n, rows, LUMA) within some rows, when each of them gets a light of its own."""
    x, y = (picture.rgb(LUMA)[:, :, zone].swapaxes(1, 2) for picture in (a, b))  # (n, row, 3, column)
    allowed = tolerance(a, b)[:, zone]
    weight = np.tile((mask / allowed**2 + 1e-9)[:, :, None], (1, 1, 3, 1))
    flat_x, flat_y, flat_weight = (z.reshape(-1, 3 * LUMA) for z in (x, y, weight))
    lights = fit(flat_x, flat_y, flat_weight, np.ones(flat_x.shape, dtype=bool), FREE)
    gain, offset = lights.T.reshape(2, *x.shape[:2], 1, 1)
    left: Floats = np.abs(np.clip(gain * x + offset, 0, 255) - np.clip(y, 0, 255)).max(axis=2) / allowed
    return left


def _overlap(windows: Floats) -> Floats:
    """The area that both pictures show, as a share of the one that shows more: (n)."""
    shares = []
    for i in (0, 2):
        shift, scale = windows[:, i], windows[:, i + 1]
        low, high = np.maximum(-0.5, (-0.5 - shift) / scale), np.minimum(0.5, (0.5 - shift) / scale)
        shares.append(np.maximum(high - low, 0))
    in_b = shares[0] * shares[1]
    smaller: Floats = np.minimum(in_b, in_b * windows[:, 1] * windows[:, 3])
    return smaller


def _same_aspect(windows: Floats, sizes_a: NDArray[np.int32], sizes_b: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether the windows of a have the aspect ratio of b."""
    aspect_a = sizes_a[:, 0] * windows[:, 1] / (sizes_a[:, 1] * windows[:, 3])
    aspect_b = sizes_b[:, 0] / sizes_b[:, 1]
    rounding = 1 / np.minimum(sizes_a.min(axis=1), sizes_b.min(axis=1))
    same: NDArray[np.bool_] = np.abs(np.log(aspect_a / aspect_b)) <= ASPECT + rounding
    return same
