"""The largest magnitude of a matrix, and the matrix as float8 in two layouts (train/model/float8.py says what for).

Both kernels run at the speed of the memory: one reads the matrix, the other reads it again and writes a byte per value
and layout.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PART, PARTS = 8192, 4
"""Values that a program compares at a time, and how often."""
TILE = 128
"""Rows and columns that a program casts: lines of 128 bytes of float8 in either layout."""


@triton.jit
def _amax(x, bits, count, PART: tl.constexpr, PARTS: tl.constexpr):
    """Floats without their sign are in the order of the integers of the same bits, with NaN above infinity."""
    first = tl.program_id(0).to(tl.int64) * (PART * PARTS)
    largest = tl.zeros((PART,), tl.int32)
    for part in tl.static_range(PARTS):
        place = first + part * PART + tl.arange(0, PART)
        value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.atomic_max(bits, tl.max(largest, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["m"])
def _cast(
    x, amax, rows, columns, inverse, m, n, padded, LIMIT: tl.constexpr, SMALLEST: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Nothing needs a limit: scaled by the largest magnitude, none is beyond it. NaN and infinity are not to have one.

    A matrix with a NaN has a scale of NaN, one with an infinity a scale of zero, whose inverse is infinite.
    """
    # Quotients of float64 rounded to float32 are those of float32, which Triton does not compute exactly.
    found, smallest = tl.load(amax).to(tl.float64), tl.full((), SMALLEST, tl.float64)
    scale = (LIMIT / tl.where(found < smallest, smallest, found)).to(tl.float32)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(inverse, (1.0 / scale.to(tl.float64)).to(tl.float32))
    column, row = tl.program_id(0).to(tl.int64) * TILE, tl.program_id(1).to(tl.int64) * TILE
    fours, j = tl.arange(0, TILE // 4)[:, None], tl.arange(0, TILE)[None, :]
    # To transpose words of four bytes takes a quarter of the traffic among threads that bytes would.
    words = tl.zeros((TILE // 4, TILE), tl.uint32)
    for k in tl.static_range(4):
        i = 4 * fours + k
        inside, place = (i < m - row) & (j < n - column), row * n + column + (i * n + j)
        value = tl.where(inside, tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale, 0.0)
        small = value.to(rows.dtype.element_ty)
        if ROWS:
            tl.store(rows + place, small, mask=inside)
        words |= small.to(tl.uint8, bitcast=True).to(tl.uint32) << (8 * k)
    if COLUMNS:
        first = (columns + column * padded + row).to(tl.pointer_type(tl.uint32), bitcast=True)
        length = tl.multiple_of(padded // 4, 4)
        inside = (fours < length - tl.program_id(1) * (TILE // 4)) & (j < n - column)
        tl.store(first + j * length + fours, words, mask=inside)


def scaled_cast(x: Tensor, rows: Tensor, columns: Tensor, smallest: float) -> Tensor:
    """Fills `rows` and `columns`, either of which may be empty; see `train.model.float8.scaled_cast`."""
    m, n = x.shape
    padded = columns.shape[1] if columns.numel() else m
    bits = torch.zeros((), dtype=torch.int32, device=x.device)
    _amax[(triton.cdiv(m * n, PART * PARTS),)](x, bits, m * n, PART=PART, PARTS=PARTS, num_warps=8)
    inverse = x.new_empty((), dtype=torch.float32)
    _cast[(triton.cdiv(n, TILE), triton.cdiv(padded, TILE))](
        x, bits.view(torch.float32), rows, columns, inverse, m, n, padded,
        LIMIT=torch.finfo(rows.dtype).max, SMALLEST=smallest, TILE=TILE, ROWS=rows.numel() > 0,
        COLUMNS=columns.numel() > 0, num_warps=8,
    )  # fmt: skip
    return inverse
