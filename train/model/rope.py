"""Rotary positions on three axes: place in the text, image row, image column.

Neighbouring channels (2i, 2i + 1) of a head are a complex number that turns by position * theta^(-2i / width)
(RoFormer, arXiv 2104.09864), a share of the head's channels for each axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.model.packing import Grid

THETA = 10_000.0

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each token's angles, (tokens, head_dim / 2) float32 each."""


def check_positions(text_lengths: Sequence[int], grids: Sequence[Grid], axes_lens: tuple[int, int, int]) -> None:
    """Raise ValueError where a sample reaches beyond the positions the model was trained with.

    An image stands on the text axis behind its caption, so a caption must be shorter than the axis.
    """
    text_axis, *image_axes = axes_lens
    if (longest := max(text_lengths)) >= text_axis:
        raise ValueError(
            f"a caption has {longest} tokens, but this model has text positions for {text_axis - 1}: "
            "cut captions when they are encoded (max_tokens)"
        )
    for name, limit, sizes in zip(("rows", "columns"), image_axes, zip(*grids, strict=True), strict=True):
        if (largest := max(sizes)) > limit:
            raise ValueError(
                f"an image has {largest} {name} of tokens, but this model has positions for {limit}: "
                "scale it down or crop it"
            )


def rotation(positions: Tensor, axes_dim: Sequence[int]) -> Rotation:
    """Angles of tokens at `positions` (tokens, 3), `axes_dim` channels for each axis.

    In float64, and from the positions themselves: there is no table to keep out of `.to(bfloat16)`, and the
    cost is nothing beside one block's.
    """
    angles = []
    for axis, width in enumerate(axes_dim):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
        angles.append(positions[:, axis, None] * THETA**-exponents)
    angle = torch.cat(angles, dim=1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn queries or keys (tokens, heads, head_dim), in float32; the result has x's dtype."""
    numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(numbers * torch.complex(*by)[:, None])
    return turned.flatten(-2).to(x.dtype)
