"""diffusers' image encoder with what lies between its convolutions fused.

Convolutions and matrix products are the libraries'. The rest only moves memory, and in diffusers' blocks moves it many
times: group norm changes the layout, activation, biases and sums are passes of their own. Here each stretch between two
convolutions is one function for the compiler, which takes seconds for it and handles any shape; compiling the
encoder as a whole takes minutes, and for any shape is slower than what it replaces.

Pictures lie in memory channels last: (pictures, channels, rows, columns) is a view of (pictures, pixels, channels).
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

SCORES = 256**2
"""Pixels of an attention from which on its scores are never whole: they would take 8 GB."""


def fuse(encoder: Any) -> None:
    """Replace the blocks of an `AutoencoderKL`'s encoder, in place; the weights stay where they are."""
    encoder.to(memory_format=torch.channels_last)
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ResnetBlock2D):
                setattr(parent, name, _Resnet(child))
            elif isinstance(child, Attention):
                setattr(parent, name, _Attention(child))
    encoder.conv_norm_out, encoder.conv_act = _NormSilu(encoder.conv_norm_out), nn.Identity()


def norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, before: Tensor | None, silu: bool) -> Tensor:
    """Group norm of x (pictures, pixels, channels), to which `before` (channels,) is added first; then SiLU, or not."""
    values = x.float() if before is None else x.float() + before.float()
    # Of each channel, then of each group: a variance is the mean of variances and the variance of means.
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    variances, means = variance.unflatten(1, (groups, -1)), mean.unflatten(1, (groups, -1))
    scale = (variances.mean(2) + means.var(2, correction=0) + eps).rsqrt()
    each = x.shape[2] // groups
    scale = scale.repeat_interleave(each, 1) * weight.float()
    shift = bias.float() - means.mean(2).repeat_interleave(each, 1) * scale
    normed = values * scale[:, None] + shift[:, None]
    found: Tensor = (F.silu(normed) if silu else normed).to(x.dtype)
    return found


def add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias, in float32 between."""
    return (x.float() + y.float() + bias.float()).to(x.dtype)


_norm_compiled = torch.compile(norm, dynamic=True)
_add_compiled = torch.compile(add, dynamic=True)


def _rows(x: Tensor) -> Tensor:
    """(pictures, channels, height, width) -> (pictures, pixels, channels), of the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_rows` for pictures of the shape of x."""
    whole: Tensor = rows.unflatten(1, x.shape[2:])
    return whole.permute(0, 3, 1, 2)


def _norm(x: Tensor, module: nn.GroupNorm, before: Tensor | None = None, silu: bool = True) -> Tensor:
    function = _norm_compiled if x.is_cuda else norm
    return function(x, module.num_groups, module.weight, module.bias, module.eps, before, silu)


class _NormSilu(nn.Module):
    def __init__(self, module: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = module

    def forward(self, x: Tensor) -> Tensor:
        return _like(_norm(_rows(x), self.norm), x)


class _Resnet(nn.Module):
    """Two norms and convolutions; the biases of these go into what follows."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.shortcut = block.conv_shortcut or nn.Identity()

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        hidden = F.conv2d(_like(_norm(_rows(x), self.norm1), x), self.conv1.weight, padding=1)
        hidden = _like(_norm(_rows(hidden), self.norm2, self.conv1.bias), hidden)
        hidden = F.conv2d(hidden, self.conv2.weight, padding=1)
        function = _add_compiled if x.is_cuda else add
        return _like(function(_rows(self.shortcut(x)), _rows(hidden), self.conv2.bias), x)


class _Attention(nn.Module):
    """One head over all pixels: PyTorch's fused attention is slow for its width, 512 in FLUX's autoencoder."""

    def __init__(self, block: Attention) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.out = (
            block.group_norm,
            block.to_q,
            block.to_k,
            block.to_v,
            block.to_out[0],
        )

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        rows = _rows(x)
        normed = _norm(rows, self.norm, silu=False)
        q, k, v = self.q(normed), self.k(normed), self.v(normed)
        if rows.shape[1] < SCORES:
            found = (q * q.shape[2] ** -0.5 @ k.transpose(1, 2)).softmax(2) @ v
        else:
            found = F.scaled_dot_product_attention(q, k, v)
        return _like(rows + self.out(found), x)
