"""The parts of the transformer.

Attribute names are diffusers', but for two pairs of matrices that are one here: a single product with a wide matrix
is faster than several with narrow ones, and leaves no gradients to be added up. `names.to_diffusers` splits them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor, nn

from train.model.attention import packed_attention
from train.model.config import DiTConfig
from train.model.norm import Rows, add_normed, branch_norm
from train.model.packing import Segments
from train.model.qk import normed_rotated
from train.model.recompute import Block
from train.model.rope import Rotation
from train.model.swiglu import swiglu

QK_NORM_EPS = 1e-5
"""Fixed in the reference, whatever norm_eps says."""


class Condition(NamedTuple):
    """The time of every sample, and whose time a token goes by."""

    time: Tensor
    """(samples, time_dim): SiLU of the time embedding."""
    rows: Rows


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight. The result has the input's dtype, also under autocast."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        # The fused kernel wants one dtype and computes in float32 inside.
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, self.eps).to(x.dtype)


class ModulatedNorm(nn.Module):
    """The norm before attention and the modulation of the whole block, together as in diffusers."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_dim, 4 * config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def modulation(self, time: Tensor) -> tuple[Tensor, ...]:
        """Scale and gate of attention, then of feed-forward: (samples, hidden) float32 each, what norms are to be
        multiplied with."""
        scale_1, gate_1, scale_2, gate_2 = self.linear(time).float().chunk(4, dim=1)
        return 1 + scale_1, gate_1.tanh(), 1 + scale_2, gate_2.tanh()


class Attention(nn.Module):
    """Grouped-query attention with normed, rotated queries and keys."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.kv_heads = config.num_kv_heads
        self.to_qkv = nn.Linear(width, width + 2 * config.kv_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, QK_NORM_EPS)
        self.norm_k = RMSNorm(config.head_dim, QK_NORM_EPS)

    def forward(self, x: Tensor, segments: Segments, by: Rotation) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        weights = self.norm_q.weight, self.norm_k.weight
        q, k, v = normed_rotated(self.to_qkv(x), *weights, by, self.kv_heads, QK_NORM_EPS)
        out: Tensor = self.to_out[0](packed_attention(q, k, v, segments).flatten(1))
        return out


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_13 = nn.Linear(config.hidden_size, 2 * config.ffn_dim, bias=False)
        self.linear_2 = nn.Linear(config.ffn_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        out: Tensor = self.linear_2(swiglu(self.linear_13(x)))
        return out


class ContextBlock(Block):
    """A block that knows no time: it refines the text."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = RMSNorm(width, eps)
        self.norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.ffn_norm2 = RMSNorm(width, eps)

    def compute(self, x: Tensor, segments: Segments, by: Rotation) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        x = x + self.norm2(self.attn(self.norm1(x), segments, by))
        out: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        return out


class ModulatedBlock(Block):
    """A block whose norms are scaled, and whose branches are gated, by the sample's time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = ModulatedNorm(config)
        self.norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.ffn_norm2 = RMSNorm(width, eps)

    def compute(self, x: Tensor, segments: Segments, by: Rotation, condition: Condition) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        scale_1, gate_1, scale_2, gate_2 = self.norm1.modulation(condition.time)
        normed, x = branch_norm(x, scale_1 * self.norm1.norm.weight, condition.rows, self.norm1.norm.eps)
        normed = self.attn(normed, segments, by)
        x = add_normed(x, normed, gate_1 * self.norm2.weight, condition.rows, self.norm2.eps)
        normed, x = branch_norm(x, scale_2 * self.ffn_norm1.weight, condition.rows, self.ffn_norm1.eps)
        normed = self.feed_forward(normed)
        return add_normed(x, normed, gate_2 * self.ffn_norm2.weight, condition.rows, self.ffn_norm2.eps)
