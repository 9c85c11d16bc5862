"""RMS norm of rows by weights of their sample, forward and backward (train/model/norm.py says what and why).

A program takes some rows, sample by sample, and holds a whole row and the weights of its sample in registers: in two
parts, for only powers of two have a place there, and the next one above 2304 would leave nearly half of it empty.

Gradients of weights are summed up in a slot for each sample that a program meets. Samples lie one behind the other, so
`program + sample` counts the slots without gaps, and those of a sample are neighbours. Places are counted in 32 bits,
for others take registers: 900,000 tokens of the released model.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_ROWS, BACKWARD_ROWS = 4, 32
"""Of a program."""
WARPS = 4
SLOTS = 32
"""Summed up at a time."""
COLUMNS = 128
"""Of sums in a program."""


@triton.jit
def _normed(
    x, weight, added, sample, offsets, out, rows, samples, eps, width: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    end = tl.minimum(first + ROWS, rows)
    main, tail = tl.arange(0, MAIN), MAIN + tl.arange(0, TAIL)
    for s in range(tl.load(sample + first).to(tl.int32), tl.load(sample + end - 1).to(tl.int32) + 1):
        begin, stop = _share(offsets, s, samples, first, end)
        w_main, w_tail = _row(weight, s, main, tail, width)
        for row in range(begin, stop):
            x_main, x_tail = _row(x, row, main, tail, width)
            if ADD:  # Loaded before threads wait for each other.
                a_main, a_tail = _row(added, row, main, tail, width)
            square = tl.sum(x_main * x_main, axis=0) + tl.sum(x_tail * x_tail, axis=0)
            r = tl.rsqrt(square / width + eps)
            x_main, x_tail = x_main * r * w_main, x_tail * r * w_tail
            if ADD:
                x_main, x_tail = x_main + a_main, x_tail + a_tail
            _store(out, row, main, tail, x_main, x_tail, width)


@triton.jit
def _gradients(
    grad, x, weight, added, sample, offsets, out, slots, rows, samples, eps, width: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = program * ROWS
    end = tl.minimum(first + ROWS, rows)
    main, tail = tl.arange(0, MAIN), MAIN + tl.arange(0, TAIL)
    for s in range(tl.load(sample + first).to(tl.int32), tl.load(sample + end - 1).to(tl.int32) + 1):
        begin, stop = _share(offsets, s, samples, first, end)
        w_main, w_tail = _row(weight, s, main, tail, width)
        total_main, total_tail = tl.zeros((MAIN,), tl.float32), tl.zeros((TAIL,), tl.float32)
        for row in range(begin, stop):
            x_main, x_tail = _row(x, row, main, tail, width)
            g_main, g_tail = _row(grad, row, main, tail, width)
            if ADD:
                a_main, a_tail = _row(added, row, main, tail, width)
            wg_main, wg_tail = g_main * w_main, g_tail * w_tail
            square, along = _sums_of(x_main, x_tail, wg_main, wg_tail)
            r = tl.rsqrt(square / width + eps)
            x_main, x_tail = x_main * r, x_tail * r
            total_main += g_main * x_main
            total_tail += g_tail * x_tail
            along = along * r / width
            g_main, g_tail = r * (wg_main - x_main * along), r * (wg_tail - x_tail * along)
            if ADD:
                g_main, g_tail = g_main + a_main, g_tail + a_tail
            _store(out, row, main, tail, g_main, g_tail, width)
        _store(slots, program + s, main, tail, total_main, total_tail, width)


@triton.jit
def _sums(
    slots, offsets, out, rows, samples, width: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0)
    begin, stop = _share(offsets, s, samples, 0, rows)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((SLOTS, COLUMNS), tl.float32)
    last = (stop - 1) // ROWS + s
    for slot in range(begin // ROWS + s, last + 1, SLOTS):
        line = slot + tl.arange(0, SLOTS)
        inside = (line[:, None] <= last) & (column[None, :] < width)
        total += tl.load(slots + line[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(out + s * width + column, tl.sum(total, axis=0), mask=column < width)


@triton.jit
def _share(offsets, s, samples, first, end):
    """The rows of sample s between two. Those behind the last sample go by it."""
    begin = tl.maximum(first, tl.load(offsets + s))
    stop = tl.minimum(end, tl.load(offsets + s + 1))
    return begin, tl.where(s == samples - 1, end, stop)


@triton.jit
def _row(x, row, main, tail, width: tl.constexpr):
    """Both parts of a row, in float32."""
    whole = x + row * width
    return tl.load(whole + main).to(tl.float32), tl.load(whole + tail, mask=tail < width, other=0.0).to(tl.float32)


@triton.jit
def _store(out, row, main, tail, value_main, value_tail, width: tl.constexpr):
    whole = out + row * width
    tl.store(whole + main, value_main.to(out.dtype.element_ty))
    tl.store(whole + tail, value_tail.to(out.dtype.element_ty), mask=tail < width)


@triton.jit
def _sums_of(x_main, x_tail, y_main, y_tail):
    """Sums of x * x and of x * y, which wait for each other's threads once and not twice."""
    main = tl.sum(tl.join(x_main * x_main, x_main * y_main), axis=0)
    tail = tl.sum(tl.join(x_tail * x_tail, x_tail * y_tail), axis=0)
    return tl.split(main + tail)


def normed(x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """See `train.model.norm.normed`."""
    (rows, width), (samples, _) = x.shape, weight.shape
    assert rows * width < 2**31
    out = torch.empty_like(x)
    _normed[(triton.cdiv(rows, FORWARD_ROWS),)](
        x, weight, added, sample, offsets, out, rows, samples, eps, width, *_parts(width), FORWARD_ROWS,
        added is not None, num_warps=WARPS,
    )  # fmt: skip
    return out


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `train.model.norm.gradients`."""
    (rows, width), (samples, _) = x.shape, weight.shape
    programs = triton.cdiv(rows, BACKWARD_ROWS)
    out, sums = torch.empty_like(x), torch.empty_like(weight)
    slots = weight.new_empty(programs + samples, width)
    _gradients[(programs,)](
        grad, x, weight, added, sample, offsets, out, slots, rows, samples, eps, width, *_parts(width), BACKWARD_ROWS,
        added is not None, num_warps=WARPS,
    )  # fmt: skip
    _sums[(samples, triton.cdiv(width, COLUMNS))](
        slots, offsets, sums, rows, samples, width, BACKWARD_ROWS, SLOTS, COLUMNS
    )
    return out, sums


def _parts(width: int) -> tuple[int, int]:
    """The largest power of two below the width of a row, and the power of two that has room for the rest."""
    main = triton.next_power_of_2(width) // 2
    return main, triton.next_power_of_2(width - main)
