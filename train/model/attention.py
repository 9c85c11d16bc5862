"""Attention in which every sample of a packed row sees itself alone."""

import inspect
from itertools import groupby

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

from train.model.packing import Segments

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

# PyTorch 2.12 asks for grouped heads to be announced; before, the kernel just took them.
_GROUPED = (
    {"enable_gqa": True} if varlen_attn and "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


def backend(device: torch.device, dtype: torch.dtype) -> str:
    """What computes attention there: "varlen" (one fused kernel for the whole row) or "sdpa" (sample by sample)."""
    fused = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and varlen_attn is not None
    return "varlen" if fused else "sdpa"


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Full attention within each segment, scores scaled by 1 / sqrt(head_dim).

    q is (tokens, heads, head_dim), k and v are (tokens, kv_heads, head_dim) with each key-value head shared by
    heads / kv_heads neighbouring query heads. Returns (tokens, heads, head_dim).
    """
    if backend(q.device, q.dtype) == "sdpa":
        return _by_sample(q, k, v, segments.lengths)
    offsets, longest = segments.offsets, segments.longest
    out: Tensor = varlen_attn(q, k, v, offsets, offsets, longest, longest, **_GROUPED)
    return out


def _by_sample(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """One call for each run of samples of equal length."""
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # split, not slices: the backward of a split is one concatenation, that of a slice fills a whole row with zeros.
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    outputs = []
    for (length, count), rows in zip(runs, parts, strict=True):
        # (count * length, heads, head_dim) -> (count, heads, length, head_dim)
        batched = (x.unflatten(0, (count, length)).transpose(1, 2) for x in rows)
        output = F.scaled_dot_product_attention(*batched, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)
