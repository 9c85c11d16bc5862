"""Pictures in another light: the planes of a batch of pictures, made brighter or darker to look like those of others.

A light is (gain, offset): every red, green and blue is multiplied and moved, and clipped to 0 and 255, as image editors
do it. The darker of two pictures can be lit like the brighter one; the other way round, what was clipped is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.dedupe.align import Floats, cubic, grown, pooled, resampled, smoothed, steepness
from curate.dedupe.descriptor import CHROMA, LUMA, planes

NOISE, STEEP, CLIPPED = 7.0, 0.35, 0.5
"""What a copy may differ by at a place, in levels of 255: NOISE for the encoder; STEEP for each level per pixel that
both pictures rise by around the place, which is a shift by a third of a pixel (an edge that only one of them has earns
nothing); and this share of the light that was CLIPPED at white around the place.

On the planted pairs of bench_duplicates.py, the largest difference over the tolerance is 0.5 at the 99th percentile of
copies encoded again or scaled, 0.75 of crops, and 1.9 at the first percentile of shut eyes. A NOISE of 8 lets 0.6 %
instead of 0.4 % of wrong pairs pass, one of 6 costs 4 % of the brightened copies."""

WHITE = 252.0
"""From this level on, the true value may have been clipped."""

GAIN_FIRST = (100.0, 100.0, 1e-2)
"""Damping of the offset in the steps of a fit. An offset that is free from the start takes what white, which has a
neighbourhood of clipped values, gets wrong: 20 % of the brightened copies are lost by that."""

FREE = (1e-3,) * 6
"""The same where nothing is known beforehand."""


@dataclass(frozen=True)
class Planes:
    """Smoothed planes of n pictures."""

    luma: Floats
    """(n, LUMA, LUMA)."""
    chroma: Floats
    """(n, 2, CHROMA, CHROMA): Cb and Cr, from -128 to 127."""

    @staticmethod
    def of(descriptors: NDArray[np.uint8]) -> "Planes":
        """The planes of descriptors (n, SIZE)."""
        luma, chroma = planes(descriptors)
        return Planes(smoothed(luma), smoothed(chroma.reshape(-1, CHROMA, CHROMA)).reshape(chroma.shape))

    def take(self, places: NDArray[np.int64]) -> "Planes":
        """Those of some pictures."""
        return Planes(self.luma[places], self.chroma[places])

    def window(self, windows: Floats) -> "Planes":
        """What is seen through windows (n, 4)."""
        chroma = resampled(self.chroma.reshape(-1, CHROMA, CHROMA), windows.repeat(2, axis=0), cubic)
        return Planes(resampled(self.luma, windows, cubic), chroma.reshape(self.chroma.shape))

    def rgb(self, side: int) -> Floats:
        """Red, green and blue (n, 3, side, side), not clipped; side is LUMA or CHROMA."""
        luma, chroma = pooled(self.luma, side), self.chroma
        if side > CHROMA:
            chroma = doubled(chroma)
        blue, red = chroma[:, 0], chroma[:, 1]
        out = np.empty((len(luma), 3, side, side), dtype=np.float32)
        out[:, 0] = luma + 1.402 * red
        out[:, 1] = luma - 0.344136 * blue - 0.714136 * red
        out[:, 2] = luma + 1.772 * blue
        return out


@dataclass(frozen=True)
class Lit:
    """Planes in another light."""

    planes: Planes
    lost: tuple[Floats, Floats]
    """The light that was clipped at white around a place, for luma and for chroma."""


def lit(picture: Planes, lights: Floats) -> Lit:
    """Pictures in lights (n, 2)."""
    gain, offset = lights.T[:, :, None, None, None]
    large, small = (gain * picture.rgb(side) + offset for side in (LUMA, CHROMA))
    lost_luma, lost_chroma = (grown(np.maximum(rgb.max(axis=1) - 255, 0)) for rgb in (large, small))
    large, small = np.clip(large, 0, 255), np.clip(small, 0, 255)
    luma = _luma(small)
    chroma = np.stack([(small[:, 2] - luma) / 1.772, (small[:, 0] - luma) / 1.402], axis=1)
    return Lit(Planes(_luma(large), chroma), (lost_luma, lost_chroma))


def light(a: Planes, b: Planes, mask: Floats) -> Floats:
    """The lights (n, 2) in which a look like b where masks (n, CHROMA, CHROMA) are not 0."""
    n = len(mask)
    rgb = b.rgb(CHROMA)
    weight = mask / (NOISE + STEEP * grown(steepness(pooled(b.luma, CHROMA)))) ** 2
    known = grown(rgb.max(axis=1)) < WHITE  # Near white, values are mixed with clipped ones.
    weight, known = (np.tile(plane.reshape(n, -1), 3) for plane in (weight, known))
    return fit(a.rgb(CHROMA).reshape(n, -1), rgb.reshape(n, -1), weight, known, GAIN_FIRST)


def fit(x: Floats, y: Floats, weight: Floats, known: NDArray[np.bool_], dampings: Sequence[float]) -> Floats:
    """(gain, offset) with gain * x + offset near y, clipped; all (n, values). Least squares with Cauchy weights.

    In the end, values that are not `known` count too, unless both are white.
    """
    weight = weight / weight.sum(axis=1, keepdims=True)
    y = np.clip(y, 0, 255)
    gain, offset = np.ones((len(x), 1), np.float32), np.zeros((len(x), 1), np.float32)
    for damping in dampings:
        guess = gain * x + offset
        residual = y - np.clip(guess, 0, 255)
        size = np.abs(residual)
        scale = (weight * size).sum(axis=1, keepdims=True) + 2
        counts = known if damping > 1 else known | (guess < WHITE)
        w = weight * counts / (1 + (size / scale) ** 2)
        wx = w * x
        s, sx, sxx = (z.sum(axis=1, keepdims=True) for z in (w, wx, wx * x))
        r, rx = (z.sum(axis=1, keepdims=True) for z in (w * residual, wx * residual))
        s, sxx = s + np.float32(damping), sxx + 10  # A picture of one colour keeps its gain.
        determinant = s * sxx - sx * sx
        gain = np.clip(gain + (s * rx - sx * r) / determinant, 0.25, 4)
        offset = np.clip(offset + (sxx * r - sx * rx) / determinant, -255, 255)
    return np.concatenate([gain, offset], axis=1)


def excess(a: Lit, b: Planes) -> Floats:
    """How much pictures differ at each place, in units of what a copy may differ by: (n, LUMA, LUMA)."""
    lost_luma, lost_chroma = a.lost
    luma = np.abs(a.planes.luma - b.luma) / (tolerance(a.planes, b) + CLIPPED * lost_luma)
    change = np.square(a.planes.chroma - b.chroma)
    steep = np.minimum(*(grown(steepness(x.chroma[:, 0]) + steepness(x.chroma[:, 1])) for x in (a.planes, b)))
    chroma = np.sqrt(change[:, 0] + change[:, 1]) / (NOISE + STEEP * steep + CLIPPED * lost_chroma)
    larger: Floats = np.maximum(luma, doubled(chroma))
    return larger


def tolerance(a: Planes, b: Planes) -> Floats:
    """What the luma of a copy may differ by, where nothing was clipped: (n, LUMA, LUMA)."""
    steep: Floats = np.minimum(grown(steepness(a.luma)), grown(steepness(b.luma)))
    return NOISE + STEEP * steep


def doubled(plane: Floats) -> Floats:
    """Every pixel four times."""
    return plane.repeat(2, axis=-2).repeat(2, axis=-1)


def _luma(rgb: Floats) -> Floats:
    luma: Floats = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    return luma
