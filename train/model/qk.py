"""What attention gets of its projection: queries and keys normed head by head and rotated, values as they are.

On a GPU all of it is one kernel, and its gradient another (train/model/kernels/qk.py). Both ways compute in float32
and round once.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

from train.model.rope import Rotation, rotate

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries (tokens, heads, head_dim), and keys and values, (tokens, kv_heads, head_dim) each."""


def normed_rotated(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, by: Rotation, kv_heads: int, eps: float) -> Heads:
    """Heads of the projection `qkv` (tokens, (heads + 2 * kv_heads) * head_dim); the weights are (head_dim,) each.

    The values are a view of `qkv`.
    """
    chosen = fused if qkv.is_cuda else plain
    return chosen(qkv, weight_q, weight_k, by, kv_heads, eps)


def plain(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, by: Rotation, kv_heads: int, eps: float) -> Heads:
    """`normed_rotated` in PyTorch's operations."""
    heads = qkv.unflatten(1, (-1, len(weight_q)))
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    q, k = (
        rotate(F.rms_norm(x.float(), weight.shape, weight.float(), eps), by).to(qkv.dtype)
        for x, weight in ((q, weight_q), (k, weight_k))
    )
    return q, k, v


def fused(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, by: Rotation, kv_heads: int, eps: float) -> Heads:
    """`normed_rotated` by the kernels."""
    heads: Heads = _Fused.apply(qkv, weight_q, weight_k, *by, kv_heads, eps)
    return heads


class _Fused(torch.autograd.Function):
    """An operator may not return a view, as the values are. Here their gradient is part of the one of qkv at once."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        weight_q: Tensor,
        weight_k: Tensor,
        cosine: Tensor,
        sine: Tensor,
        kv_heads: int,
        eps: float,
    ) -> Heads:
        ctx.save_for_backward(qkv, weight_q, weight_k, cosine, sine)
        ctx.eps = eps
        q, k = _forward(qkv, weight_q, weight_k, cosine, sine, kv_heads, eps)
        return q, k, qkv.unflatten(1, (-1, len(weight_q)))[:, -kv_heads:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight_q, weight_k, cosine, sine = ctx.saved_tensors
        grad, of_weights = _backward(qkv, weight_q, weight_k, cosine, sine, *grads, ctx.eps)
        of_q, of_k = of_weights.unbind()
        return grad, of_q.to(weight_q.dtype), of_k.to(weight_k.dtype), None, None, None, None


@torch.library.custom_op("illustrious::normed_rotated", mutates_args=())
def _forward(
    qkv: Tensor, weight_q: Tensor, weight_k: Tensor, cosine: Tensor, sine: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Queries and keys."""
    from train.model.kernels import qk

    return qk.forward(qkv.contiguous(), weight_q, weight_k, cosine, sine, kv_heads, eps)


@_forward.register_fake
def _(
    qkv: Tensor, weight_q: Tensor, _k: Tensor, _cosine: Tensor, _sine: Tensor, kv_heads: int, _eps: float
) -> tuple[Tensor, Tensor]:
    tokens, width = qkv.shape
    head_dim = len(weight_q)
    heads = width // head_dim - 2 * kv_heads
    return qkv.new_empty(tokens, heads, head_dim), qkv.new_empty(tokens, kv_heads, head_dim)


@torch.library.custom_op("illustrious::normed_rotated_backward", mutates_args=())
def _backward(
    qkv: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cosine: Tensor,
    sine: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv, and of both weights as (2, head_dim) float32."""
    from train.model.kernels import qk

    grads = grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()
    return qk.backward(qkv.contiguous(), weight_q, weight_k, cosine, sine, grads, eps)


@_backward.register_fake
def _(
    qkv: Tensor,
    weight_q: Tensor,
    _weight_k: Tensor,
    _cosine: Tensor,
    _sine: Tensor,
    _grad_q: Tensor,
    _grad_k: Tensor,
    _grad_v: Tensor,
    _eps: float,
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), weight_q.new_empty((2, len(weight_q)), dtype=torch.float32)
