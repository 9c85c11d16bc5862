"""Norm and rotation of queries and keys, and the gradient of all that came out of their projection.

A token's heads of queries and keys are neighbours in a row of `qkv` and share the token's angles: they are one tile
(heads, head_dim), padded to powers of two. Every number is read and written once, and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_WARPS = 8
BACKWARD_WARPS = 8
TOKENS = 16
"""Of one program of the backward pass, which leaves one partial sum of the weights' gradients."""
STAGES = 3
"""Tokens that such a program has under way at once."""


def forward(
    qkv: Tensor, weight_q: Tensor, weight_k: Tensor, cosine: Tensor, sine: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Queries (tokens, heads, head_dim) and keys (tokens, kv_heads, head_dim) of contiguous tensors."""
    tokens, width = qkv.shape
    head_dim = len(weight_q)
    heads = width // head_dim - 2 * kv_heads
    q, k = qkv.new_empty(tokens, heads, head_dim), qkv.new_empty(tokens, kv_heads, head_dim)
    sizes = _sizes(heads, kv_heads, head_dim)
    _forward[(tokens,)](qkv, weight_q, weight_k, cosine, sine, q, k, eps, **sizes, num_warps=FORWARD_WARPS)
    return q, k


def backward(
    qkv: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cosine: Tensor,
    sine: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv (tokens, width) and of both weights (2, head_dim) float32, from those of q, k and v.

    The partial sums of the latter are added up in a fixed order: no two runs differ.
    """
    tokens, heads, head_dim = grads[0].shape
    kv_heads = grads[1].shape[1]
    programs = triton.cdiv(tokens, TOKENS)
    out = torch.empty_like(qkv)
    partial = qkv.new_empty(programs, 2, head_dim, dtype=torch.float32)
    _backward[(programs,)](
        qkv,
        weight_q,
        weight_k,
        cosine,
        sine,
        *grads,
        out,
        partial,
        eps,
        tokens,
        **_sizes(heads, kv_heads, head_dim),
        values=triton.next_power_of_2(kv_heads * head_dim),
        block=TOKENS,
        stages=STAGES,
        num_warps=BACKWARD_WARPS,
    )
    return out, partial.sum(dim=0)


def _sizes(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    """Of the tile, too: `rows` and `columns`, powers of two."""
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "rows": triton.next_power_of_2(heads + kv_heads),
        "columns": triton.next_power_of_2(head_dim),
    }


@triton.jit
def _forward(
    qkv,
    weight_q,
    weight_k,
    cosine,
    sine,
    q,
    k,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    place, is_query, is_key = _tile(heads, kv_heads, head_dim, rows, columns)
    x = tl.load(qkv + token * (heads + 2 * kv_heads) * head_dim + place, mask=is_query | is_key, other=0)
    even, odd = _pairs(x, rows, columns)
    inverse = _inverse_rms(even, odd, eps, head_dim)
    weight_even, weight_odd = _weights(weight_q, weight_k, heads, head_dim, rows, columns)
    even, odd = even * inverse * weight_even, odd * inverse * weight_odd
    cos, sin = _angles(cosine, sine, token, head_dim, columns)
    out = tl.interleave(even * cos - odd * sin, even * sin + odd * cos)
    tl.store(q + token * heads * head_dim + place, out, mask=is_query)
    tl.store(k + (token * kv_heads - heads) * head_dim + place, out, mask=is_key)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    qkv,
    weight_q,
    weight_k,
    cosine,
    sine,
    grad_q,
    grad_k,
    grad_v,
    out,
    partial,
    eps,
    tokens,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    values: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """`block` tokens, one after the other; `values` is kv_heads * head_dim, padded."""
    program = tl.program_id(0)
    width: tl.constexpr = (heads + 2 * kv_heads) * head_dim
    kv_width: tl.constexpr = kv_heads * head_dim
    place, is_query, is_key = _tile(heads, kv_heads, head_dim, rows, columns)
    value = tl.arange(0, values)
    weight_even, weight_odd = _weights(weight_q, weight_k, heads, head_dim, rows, columns)
    sum_even = tl.zeros((rows, columns // 2), tl.float32)
    sum_odd = tl.zeros((rows, columns // 2), tl.float32)
    first = program.to(tl.int64) * block
    for step in tl.range(0, tl.minimum(block, tokens - program * block), num_stages=stages):
        token = first + step
        x = tl.load(qkv + token * width + place, mask=is_query | is_key, other=0)
        of_query = tl.load(grad_q + token * heads * head_dim + place, mask=is_query, other=0)
        of_key = tl.load(grad_k + (token * kv_heads - heads) * head_dim + place, mask=is_key, other=0)
        of_value = tl.load(grad_v + token * kv_width + value, mask=value < kv_width, other=0)
        cos, sin = _angles(cosine, sine, token, head_dim, columns)
        # Turned back, these are the gradients of the weighted norm.
        even, odd = _pairs(of_query + of_key, rows, columns)
        even, odd = even * cos + odd * sin, odd * cos - even * sin
        x_even, x_odd = _pairs(x, rows, columns)
        inverse = _inverse_rms(x_even, x_odd, eps, head_dim)
        x_even, x_odd = x_even * inverse, x_odd * inverse
        sum_even += even * x_even
        sum_odd += odd * x_odd
        even, odd = even * weight_even, odd * weight_odd
        along = tl.sum(even * x_even + odd * x_odd, axis=1, keep_dims=True) / head_dim
        grad = tl.interleave((even - x_even * along) * inverse, (odd - x_odd * along) * inverse)
        tl.store(out + token * width + place, grad, mask=is_query | is_key)
        tl.store(out + (token + 1) * width - kv_width + value, of_value, mask=value < kv_width)
    # The rows of nothing have added zeros.
    query = tl.arange(0, rows)[:, None] < heads
    channel = tl.arange(0, columns)
    there = partial + program * 2 * head_dim + channel
    for_q = tl.interleave(_sum_where(query, sum_even), _sum_where(query, sum_odd))
    for_k = tl.interleave(_sum_where(~query, sum_even), _sum_where(~query, sum_odd))
    tl.store(there, for_q, mask=channel < head_dim)
    tl.store(there + head_dim, for_k, mask=channel < head_dim)


@triton.jit
def _tile(
    heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr
):
    """Places of a token's numbers, and which of them belong to queries and to keys: (rows, columns) each."""
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    is_query = (row < heads) & (column < head_dim)
    is_key = (row >= heads) & (row < heads + kv_heads) & (column < head_dim)
    return row * head_dim + column, is_query, is_key


@triton.jit
def _pairs(x, rows: tl.constexpr, columns: tl.constexpr):
    """Even and odd channels of (rows, columns), float32."""
    return tl.split(tl.reshape(x.to(tl.float32), (rows, columns // 2, 2)))


@triton.jit
def _inverse_rms(even, odd, eps, head_dim: tl.constexpr):
    """(rows, 1). The padding is zeros."""
    return tl.rsqrt(tl.sum(even * even + odd * odd, axis=1, keep_dims=True) / head_dim + eps)


@triton.jit
def _weights(
    weight_q, weight_k, heads: tl.constexpr, head_dim: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr
):
    """Each row's weights of even and odd channels."""
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    of_query = tl.load(weight_q + column, mask=column < head_dim, other=0)
    of_key = tl.load(weight_k + column, mask=column < head_dim, other=0)
    return _pairs(tl.where(row < heads, of_query, of_key), rows, columns)


@triton.jit
def _angles(cosine, sine, token, head_dim: tl.constexpr, columns: tl.constexpr):
    """Cosine and sine of a token, (1, columns / 2) each."""
    half: tl.constexpr = head_dim // 2
    pair = tl.arange(0, columns // 2)[None, :]
    cos = tl.load(cosine + token * half + pair, mask=pair < half, other=0)
    sin = tl.load(sine + token * half + pair, mask=pair < half, other=0)
    return cos, sin


@triton.jit
def _sum_where(mask, x):
    """Sum over the rows that are chosen."""
    return tl.sum(tl.where(mask, x, 0), axis=0)
