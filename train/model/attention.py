"""Attention in which every sample of a packed row sees itself alone."""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from train.model import flash4
from train.model.packing import Segments

Backend = Literal["flash4", "flash2", "sdpa"]
"""FlashAttention 4 or 2, one kernel for a whole row; or PyTorch's attention, sample by sample."""

_varlen: Callable[..., Any] = varlen_attn
if "enable_gqa" in inspect.signature(varlen_attn).parameters:
    # Later versions of PyTorch want grouped heads announced, earlier ones just take them.
    _varlen = partial(_varlen, enable_gqa=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """What computes attention."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    return "flash4" if head_dim in flash4.HEAD_DIMS and flash4.available() else "flash2"


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Full attention within each segment, scores scaled by 1 / sqrt(head_dim).

    q is (tokens, heads, head_dim), k and v are (tokens, kv_heads, head_dim) where each key-value head
    serves heads / kv_heads neighbouring query heads. Returns (tokens, heads, head_dim).
    """
    offsets, longest = segments.offsets, segments.longest
    chosen = backend(q.device, q.dtype, q.shape[2])
    out: Tensor
    if chosen == "flash4":
        out, _ = flash4.flash4(q, k, v, offsets, longest)
    elif chosen == "flash2":
        out = _varlen(q, k, v, offsets, offsets, longest, longest)
    else:
        out = _by_sample(q, k, v, segments.lengths)
    return out


def _by_sample(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """One call for each run of samples of equal length."""
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # Not slices: the backward of a split is one concatenation, that of each slice fills a whole row.
    parts = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    outputs = []
    for (length, count), rows in zip(runs, parts, strict=True):
        # (count * length, heads, head_dim) -> (count, heads, length, head_dim)
        queries, keys, values = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in rows)
        output = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)
