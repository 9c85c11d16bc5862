"""SwiGLU and its gradient (train/model/swiglu.py says what and why). A program takes a stretch of a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024
WARPS = 4


@triton.jit
def _forward(x, out, width, COLUMNS: tl.constexpr):
    row, column, inside = _place(width, COLUMNS)
    gate = tl.load(x + 2 * row * width + column, mask=inside).to(tl.float32)
    value = tl.load(x + (2 * row + 1) * width + column, mask=inside).to(tl.float32)
    found = gate * tl.sigmoid(gate) * value
    tl.store(out + row * width + column, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(grad, x, out, width, COLUMNS: tl.constexpr):
    row, column, inside = _place(width, COLUMNS)
    gate = tl.load(x + 2 * row * width + column, mask=inside).to(tl.float32)
    value = tl.load(x + (2 * row + 1) * width + column, mask=inside).to(tl.float32)
    g = tl.load(grad + row * width + column, mask=inside).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate, of_value = g * value * share * (1 + gate * (1 - share)), g * gate * share
    tl.store(out + 2 * row * width + column, of_gate.to(out.dtype.element_ty), mask=inside)
    tl.store(out + (2 * row + 1) * width + column, of_value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(width, COLUMNS: tl.constexpr):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return tl.program_id(0).to(tl.int64), column, column < width


def forward(x: Tensor) -> Tensor:
    """See `train.model.swiglu.swiglu`."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    _forward[(rows, triton.cdiv(width, COLUMNS))](x, out, width, COLUMNS, num_warps=WARPS)
    return out


def backward(grad: Tensor, x: Tensor) -> Tensor:
    """See `train.model.swiglu.gradient`."""
    rows, width = grad.shape
    out = torch.empty_like(x)
    _backward[(rows, triton.cdiv(width, COLUMNS))](grad, x, out, width, COLUMNS, num_warps=WARPS)
    return out
