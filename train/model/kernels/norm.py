"""RMS norm of rows by weights of their sample, forward and backward (train/model/norm.py says what and why).

A program takes ROWS rows, sample by sample, and holds a whole row and the weights of its sample in registers.
Gradients of weights are summed up in a slot for each sample that a program meets. Samples lie one behind the other, so
`program + sample` counts the slots without gaps, and those of a sample are neighbours. Places are counted in 32 bits,
which is enough for 900,000 tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Of a program."""
SLOTS = 32
"""Summed up at a time."""
COLUMNS = 128
"""Of sums in a program."""


@triton.jit
def _normed(
    x, weight, added, sample, offsets, out, rows, samples, eps, width: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    end = tl.minimum(first + ROWS, rows)
    column = tl.arange(0, BLOCK)
    inside = column < width
    for s in range(tl.load(sample + first).to(tl.int32), tl.load(sample + end - 1).to(tl.int32) + 1):
        begin, stop = _share(offsets, s, samples, first, end)
        w = tl.load(weight + s * width + column, mask=inside, other=0.0)
        for row in range(begin, stop):
            place = row * width + column
            value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            r = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
            value = value * r * w
            if ADD:
                value += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(
    grad, x, weight, added, sample, offsets, out, slots, rows, samples, eps, width: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = program * ROWS
    end = tl.minimum(first + ROWS, rows)
    column = tl.arange(0, BLOCK)
    inside = column < width
    for s in range(tl.load(sample + first).to(tl.int32), tl.load(sample + end - 1).to(tl.int32) + 1):
        begin, stop = _share(offsets, s, samples, first, end)
        w = tl.load(weight + s * width + column, mask=inside, other=0.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for row in range(begin, stop):
            place = row * width + column
            normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            r = tl.rsqrt(tl.sum(normed * normed, axis=0) / width + eps)
            normed *= r
            g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
            total += g * normed
            g *= w
            value = r * (g - normed * (tl.sum(g * normed, axis=0) / width))
            if ADD:
                value += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
        tl.store(slots + (program + s) * width + column, total, mask=inside)


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


def normed(x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """See `train.model.norm.normed`."""
    (rows, width), (samples, _) = x.shape, weight.shape
    out = torch.empty_like(x)
    _normed[(triton.cdiv(rows, ROWS),)](
        x, weight, added, sample, offsets, out, rows, samples, eps, width,
        BLOCK=triton.next_power_of_2(width), ROWS=ROWS, ADD=added is not None, num_warps=8,
    )  # fmt: skip
    return out


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `train.model.norm.gradients`."""
    (rows, width), (samples, _) = x.shape, weight.shape
    programs = triton.cdiv(rows, ROWS)
    out, sums = torch.empty_like(x), torch.empty_like(weight)
    slots = weight.new_empty(programs + samples, width)
    _gradients[(programs,)](
        grad, x, weight, added, sample, offsets, out, slots, rows, samples, eps, width,
        BLOCK=triton.next_power_of_2(width), ROWS=ROWS, ADD=added is not None, num_warps=8,
    )  # fmt: skip
    _sums[(samples, triton.cdiv(width, COLUMNS))](
        slots, offsets, sums, rows, samples, width, ROWS=ROWS, SLOTS=SLOTS, COLUMNS=COLUMNS
    )
    return out, sums
