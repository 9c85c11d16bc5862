"""Which window of one picture another one shows: planes of pictures, squashed square, are laid on each other.

A window is (shift x, scale x, shift y, scale y): the point (x, y) of b, from its middle and in shares of its sides,
shows what a has at (scale x * x + shift x, scale y * y + shift y). A crop of a has scales below 1; WHOLE is all of a.

Every pair is worked on by itself, whatever is beside it in a batch: sums run along the values of one pair, and
products are of one pair's matrices.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

Kernel = Callable[[Floats], Floats]
"""Interpolation weight by the distance of a sample, in pixels."""

WHOLE = np.array([0, 1, 0, 1], dtype=np.float32)

STEPS = ((16, 4), (32, 3), (64, 1))
"""Side of the planes and Gauss-Newton steps, from coarse to fine. A shift by 10 % is 1.6 pixels of 16: the slopes,
which see about two pixels far, still point the right way. On crops by up to 6 %, one more step at 64 moves a window by
0.1 pixels of 64 at most; without any at 64, windows are up to 0.6 pixels off."""

LARGEST = np.array([0.12, 0.25, 0.12, 0.25, 0.4, 0.25], dtype=np.float32)
"""Largest change of shift, scale, gain and offset that is looked for: a crop by 10 % a side has a scale of 0.8, or 1.25
seen from the other side, and a shift of up to 0.1."""

DAMPING = np.array([1e-2, 1e-2, 1e-2, 1e-2, 1e-4, 1e-4], dtype=np.float32)
"""Added to the diagonal of the normal equations, per pixel: where nothing is drawn, nothing moves."""

NOISE = 0.01
"""Residuals are outliers beyond 1.5 times their mean, but never below this share of white."""


def align(a: Floats, b: Floats) -> Floats:
    """The windows (n, 4) of planes a that planes b show; both (n, side, side), 0 to 255.

    Gauss-Newton on window, gain and offset with Huber weights (Baker and Matthews, "Lucas-Kanade 20 years on", IJCV
    2004), the slopes being those of both pictures (Benhimane and Malis, "Real-time image-based tracking of planes
    using efficient second-order minimization", IROS 2004). Every pair takes the same number of steps.
    """
    start = np.array([*WHOLE, 1, 0], dtype=np.float32)
    found = np.tile(start, (len(a), 1))
    if not len(a):
        return found[:, :4]
    for side, steps in STEPS:
        small_a, small_b = (pooled(plane, side) * np.float32(1 / 255) for plane in (a, b))
        slopes_b = slopes(small_b)
        for _ in range(steps):
            step = _step(small_a, small_b, slopes_b, found)
            found = np.clip(found + step, start - LARGEST, start + LARGEST)
    return found[:, :4]


def _step(a: Floats, b: Floats, slopes_b: tuple[Floats, Floats], found: Floats) -> Floats:
    """One step of all pairs: (n, 6), to add to window, gain and offset."""
    n, side = len(a), a.shape[-1]
    warped = resampled(a, found[:, :4], linear)
    mask = inside(found[:, :4], side)
    gain, offset = found[:, 4, None, None], found[:, 5, None, None]
    lit = gain * warped + offset
    residual = ((b - np.clip(lit, 0, 1)) * mask).reshape(n, -1)
    slope_x, slope_y = slopes(warped)
    slope_x = (slopes_b[0] + gain * slope_x) * np.float32(side / 2)
    slope_y = (slopes_b[1] + gain * slope_y) * np.float32(side / 2)
    place = centers(side)
    free = (lit < 1).astype(np.float32)  # What is clipped does not change with the light.
    derivatives = np.empty((n, 6, side, side), dtype=np.float32)
    derivatives[:, 0], derivatives[:, 1] = slope_x, slope_x * place
    derivatives[:, 2], derivatives[:, 3] = slope_y, slope_y * place[:, None]
    derivatives[:, 4], derivatives[:, 5] = warped * free, free
    jacobian = derivatives.reshape(n, 6, side * side)
    size = np.abs(residual)
    weight = mask.reshape(n, -1) / np.maximum(1, size / (1.5 * size.mean(axis=1, keepdims=True) + NOISE))
    weighted = jacobian * weight[:, None]
    normal = weighted @ jacobian.transpose(0, 2, 1)
    normal[:, range(6), range(6)] += DAMPING * np.float32(side * side)
    step: Floats = np.linalg.solve(normal, weighted @ residual[:, :, None])[:, :, 0]
    return step


def centers(side: int) -> Floats:
    """The middles of pixels, from the middle of the plane, in shares of its side."""
    return ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)


def inside(windows: Floats, side: int, margin: float = 0.0) -> Floats:
    """1 where a pixel of b lies in a, and `margin` pixels away from the edges of both, else 0: (n, side, side)."""
    place, limit = centers(side), 0.5 - margin / side
    own = np.abs(place) <= limit
    columns, rows = (own & (np.abs(windows[:, i + 1, None] * place + windows[:, i, None]) <= limit) for i in (0, 2))
    both: Floats = (rows[:, :, None] & columns[:, None, :]).astype(np.float32)
    return both


def resampled(plane: Floats, windows: Floats, kernel: Kernel) -> Floats:
    """The windows of planes (n, side, side), as large as the planes; beyond its edges a plane goes on as there."""
    side = plane.shape[-1]
    rows, columns = (_weights(windows[:, i], windows[:, i + 1], side, kernel) for i in (2, 0))
    seen: Floats = np.matmul(rows @ plane, columns.transpose(0, 2, 1), dtype=np.float32)
    return seen


def _weights(shift: Floats, scale: Floats, side: int, kernel: Kernel) -> Floats:
    """Interpolation matrices (n, side of b, side of a)."""
    half = np.float32(0.5)
    at = (scale[:, None] * centers(side) + shift[:, None] + half) * np.float32(side) - half
    at = np.minimum(np.maximum(at, 0), side - 1)
    return kernel(np.abs(at[:, :, None] - np.arange(side, dtype=np.float32)))


def linear(distance: Floats) -> Floats:
    """A straight line between neighbours."""
    return np.maximum(0, 1 - distance)


def cubic(distance: Floats) -> Floats:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, np.float32(0)))


def pooled(plane: Floats, side: int) -> Floats:
    """Smaller planes, by means over blocks of 2, 4, 8... pixels a side."""
    while plane.shape[-1] > side:
        pairs = plane[..., ::2, :] + plane[..., 1::2, :]
        plane = (pairs[..., ::2] + pairs[..., 1::2]) * np.float32(0.25)
    return plane


def smoothed(plane: Floats) -> Floats:
    """Planes (n, rows, columns) folded with 1-2-1 along both sides: takes away what interpolation gets wrong."""
    plane = _padded(plane)
    plane = 2 * plane[:, 1:-1] + plane[:, :-2] + plane[:, 2:]
    return (2 * plane[..., 1:-1] + plane[..., :-2] + plane[..., 2:]) * np.float32(1 / 16)


def slopes(plane: Floats) -> tuple[Floats, Floats]:
    """Central differences along x and y, per pixel."""
    plane = _padded(plane) * np.float32(0.5)
    return plane[:, 1:-1, 2:] - plane[:, 1:-1, :-2], plane[:, 2:, 1:-1] - plane[:, :-2, 1:-1]


def steepness(plane: Floats) -> Floats:
    """The levels per pixel by which planes rise, whatever the direction."""
    x, y = slopes(plane)
    return np.sqrt(x * x + y * y)


def grown(plane: Floats) -> Floats:
    """The largest of each pixel and its eight neighbours."""
    plane = _padded(plane)
    plane = np.maximum(np.maximum(plane[:, 1:-1], plane[:, :-2]), plane[:, 2:])
    return np.maximum(np.maximum(plane[..., 1:-1], plane[..., :-2]), plane[..., 2:])


def _padded(plane: Floats) -> Floats:
    """One more pixel on every side, as the outermost one."""
    n, rows, columns = plane.shape
    out = np.empty((n, rows + 2, columns + 2), dtype=np.float32)
    out[:, 1:-1, 1:-1] = plane
    out[:, 0, 1:-1], out[:, -1, 1:-1] = plane[:, 0], plane[:, -1]
    out[:, :, 0], out[:, :, -1] = out[:, :, 1], out[:, :, -2]
    return out
