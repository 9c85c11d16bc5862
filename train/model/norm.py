"""Norms whose weights depend on the sample, as one operation each way.

A modulated block norms four times: before attention and before the feed-forward, where the norm is scaled by the
sample's time, and behind each of them, where it is gated by it and added to the residual stream. All four are one
function, `added + rms_norm(x) * weight[sample]`, where the weight of the norm and the modulation, which are products
of a few rows, are multiplied first. In float32, rounded once. On a GPU each way is one kernel, at the speed of the
memory; what the compiler makes of the parts reads and writes about three times as much (bench/results).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Whose rows are whose, in a packed sequence."""

    sample: Tensor
    """(rows,) int64: never falling; rows behind the last sample go by it."""
    offsets: Tensor
    """(samples + 1 or more,) int32: sample i begins at row offsets[i]. No sample is empty."""


def branch_norm(x: Tensor, weight: Tensor, rows: Rows, eps: float) -> tuple[Tensor, Tensor]:
    """x (rows, width) normed, times weight (samples, width) float32; and x, from which the residual stream goes on.

    Who goes on with this x has its gradient summed up with that of the norm where that is written.
    """
    normed, kept = _Branch.apply(x, weight, rows.sample, rows.offsets, eps)
    return normed, kept


def add_normed(stream: Tensor, x: Tensor, weight: Tensor, rows: Rows, eps: float) -> Tensor:
    """The stream (rows, width) plus x, normed, times weight (samples, width) float32."""
    out: Tensor = _Added.apply(stream, x, weight, rows.sample, rows.offsets, eps)
    return out


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, sample: Tensor, offsets: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, sample, offsets)
        ctx.eps = eps
        return normed(x, weight, None, sample, offsets, eps), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, sample, offsets = ctx.saved_tensors
        return *gradients(grads[0], x, weight, grads[1], sample, offsets, ctx.eps), None, None, None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, x: Tensor, weight: Tensor, sample: Tensor, offsets: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, sample, offsets)
        ctx.eps = eps
        out: Tensor = normed(x, weight, stream, sample, offsets, eps)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, sample, offsets = ctx.saved_tensors
        return grads[0], *gradients(grads[0], x, weight, None, sample, offsets, ctx.eps), None, None, None


@torch.library.custom_op("illustrious::normed", mutates_args=())
def normed(x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, _offsets: Tensor, eps: float) -> Tensor:
    """`added + rms_norm(x) * weight[sample]`."""
    wide = x.float()
    out = wide * _scale(wide, eps) * weight[sample]
    return (out if added is None else out + added).to(x.dtype)


@torch.library.custom_op("illustrious::normed_backward", mutates_args=())
def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, _offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, plus `added`, and of the weight."""
    wide, spread = x.float(), weight[sample]
    scale = _scale(wide, eps)
    rows = wide * scale
    product = grad * rows
    out = scale * (grad * spread - rows * (product * spread).mean(dim=1, keepdim=True))
    sums = torch.zeros_like(weight).index_add_(0, sample, product)
    return (out if added is None else out + added).to(x.dtype), sums


def _scale(x: Tensor, eps: float) -> Tensor:
    """What norms rows, (rows, 1)."""
    return torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


@normed.register_kernel("cuda")
def normed_by_kernel(
    x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float
) -> Tensor:
    """`normed` on a GPU."""
    from train.model.kernels import norm

    return norm.normed(x.contiguous(), weight.contiguous(), _whole(added), sample, offsets, eps)


@gradients.register_kernel("cuda")
def gradients_by_kernel(
    grad: Tensor, x: Tensor, weight: Tensor, added: Tensor | None, sample: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`gradients` on a GPU."""
    from train.model.kernels import norm

    return norm.gradients(grad.contiguous(), x.contiguous(), weight.contiguous(), _whole(added), sample, offsets, eps)


def _whole(x: Tensor | None) -> Tensor | None:
    """Contiguous, as kernels want it: a gradient may be one number that stands for all."""
    return None if x is None else x.contiguous()


@normed.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@gradients.register_fake
def _(_grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)
