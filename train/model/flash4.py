"""FlashAttention 4 (the package flash-attn-4) as an operator that compiled code calls without a break.

The package's own autograd function is opaque to the compiler; its two halves are what is wrapped here. They are not
its public interface, so the version is pinned (pyproject.toml, extra `fast`).
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

HEAD_DIMS = (64, 96, 128)
"""Those it is tested with. Of others, such as 16, it leaves out rows without a word."""


@cache
def available() -> bool:
    """Whether the package is there and runs on this GPU (Hopper or later)."""
    found = importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")
    return bool(found) and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9


@torch.library.custom_op("illustrious::flash4", mutates_args=())
def flash4(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Attention within segments, and the logarithms of its sums (heads, tokens), which the backward needs.

    q is (tokens, heads, head_dim), k and v are (tokens, kv_heads, head_dim), `offsets` (segments + 1,) int32.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    found: Any = _flash_attn_fwd(q, k, v, **_segments(offsets, longest), return_lse=True)
    return found[0], found[1]


@flash4.register_fake
def _(q: Tensor, _k: Tensor, _v: Tensor, _offsets: Tensor, _longest: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("illustrious::flash4_backward", mutates_args=())
def flash4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, offsets: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from flash_attn.cute.interface import _flash_attn_bwd

    found: Any = _flash_attn_bwd(q, k, v, out, grad.contiguous(), sums, **_segments(offsets, longest))
    return found[0], found[1], found[2]


@flash4_backward.register_fake
def _(
    _grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _out: Tensor, _sums: Tensor, _offsets: Tensor, _longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _segments(offsets: Tensor, longest: int) -> dict[str, Any]:
    return {
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, ctx.longest = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, sums, offsets = ctx.saved_tensors
    return *flash4_backward(grad, q, k, v, out, sums, offsets, ctx.longest), None, None


flash4.register_autograd(_backward, setup_context=_save)
