"""The parts of the transformer. Attribute names are diffusers', so that the state dict is diffusers' too."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor, nn

from train.model.attention import packed_attention
from train.model.config import DiTConfig
from train.model.packing import Segments
from train.model.rope import Rotation, rotate

QK_NORM_EPS = 1e-5
"""Fixed in the reference, whatever norm_eps says."""


class Condition(NamedTuple):
    """The time of every sample, and whose time a token goes by."""

    time: Tensor
    """(samples, time_dim): SiLU of the time embedding."""
    membership: Tensor
    """(tokens, samples): a one in the column of the token's sample, else zeros.

    Per-token values are products with this matrix: their backward is a product again, where the backward of
    indexing is a scatter (2 % of a whole step on an H100).
    """

    def of(self, rows: Tensor) -> "Condition":
        """The condition of some of the tokens."""
        return Condition(self.time, self.membership[rows])


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

    def modulation(self, condition: Condition) -> tuple[Tensor, ...]:
        """Scale and gate (after its tanh) of attention, then of feed-forward: (tokens, hidden) each."""
        scale_1, gate_1, scale_2, gate_2 = self.linear(condition.time).chunk(4, dim=1)
        values = torch.cat((scale_1, gate_1.tanh(), scale_2, gate_2.tanh()), dim=1)
        return (condition.membership @ values).chunk(4, dim=1)


class Attention(nn.Module):
    """Grouped-query attention with normed, rotated queries and keys."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, config.kv_dim, bias=False)
        self.to_v = nn.Linear(width, config.kv_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, QK_NORM_EPS)
        self.norm_k = RMSNorm(config.head_dim, QK_NORM_EPS)

    def forward(self, x: Tensor, segments: Segments, by: Rotation) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        heads = (-1, self.head_dim)
        q = rotate(self.norm_q(self.to_q(x).unflatten(1, heads)), by)
        k = rotate(self.norm_k(self.to_k(x).unflatten(1, heads)), by)
        v = self.to_v(x).unflatten(1, heads)
        out: Tensor = self.to_out[0](packed_attention(q, k, v, segments).flatten(1))
        return out


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.ffn_dim, bias=False)
        self.linear_2 = nn.Linear(config.ffn_dim, config.hidden_size, bias=False)
        self.linear_3 = nn.Linear(config.hidden_size, config.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))
        return out


class ContextBlock(nn.Module):
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

    def forward(self, x: Tensor, segments: Segments, by: Rotation) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        x = x + self.norm2(self.attn(self.norm1(x), segments, by))
        out: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        return out


class ModulatedBlock(nn.Module):
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

    def forward(self, x: Tensor, segments: Segments, by: Rotation, condition: Condition) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        scale_1, gate_1, scale_2, gate_2 = self.norm1.modulation(condition)
        x = x + gate_1 * self.norm2(self.attn(scaled(self.norm1.norm(x), scale_1), segments, by))
        out: Tensor = x + gate_2 * self.ffn_norm2(self.feed_forward(scaled(self.ffn_norm1(x), scale_2)))
        return out


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale), without rounding the sum: near zero, bfloat16 scales would drown in the one."""
    return torch.addcmul(x, x, scale)
