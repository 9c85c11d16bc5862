"""Low-rank adapters (LoRA, arXiv 2106.09685) on the large matrices of the blocks.

An adapter belongs to one of diffusers' matrices, W: it is used as W + alpha / rank * B A. Where the model has several
of them as one, their A lie below one another, and so do their B: the adapters of a matrix of the model are two
parameters, `lora_A` of (parts * rank, columns) and `lora_B` of (rows, rank), however many parts it has.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor, nn

from train.data.plan import ADAPTER
from train.data.random import stream_key, uniform
from train.model.dit import Lumina2DiT
from train.model.names import MERGED, heights, parts_of
from train.settings import LoraSettings, LoraTarget

TARGETS: Mapping[LoraTarget, Sequence[str]] = {
    "attention": ("attn.to_qkv", "attn.to_out.0"),
    "feed_forward": ("feed_forward.linear_13", "feed_forward.linear_2"),
}
"""The matrices of a block, by what settings call them."""


class LoraLinear(nn.Module):
    """A linear layer that stays as it is, and the adapters of its parts, which learn.

    Not one of PyTorch's linear layers: what replaces those, as float8 does, must leave this one alone.
    """

    def __init__(self, linear: nn.Linear, parts: int, rank: int, scale: float) -> None:
        """The adapters change nothing yet: B is zero. A is too, until somebody fills it."""
        super().__init__()
        rows, columns = linear.weight.shape
        self.weight = linear.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(linear.weight.new_zeros(parts * rank, columns))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(rows, rank))
        self.scale = scale
        """alpha / rank."""
        self.rows = heights(parts, rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, columns) -> (tokens, rows)."""
        # Beside the product with the weight, one with many zeros costs less than its parts one after the other.
        up = torch.block_diag(*self.lora_B.split(self.rows))
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.lora_A) * self.scale, up)


def add_lora(model: Lumina2DiT, settings: LoraSettings, seed: int) -> None:
    """Give the blocks adapters, which are then all that learns.

    They begin as peft's do: B is zero, A uniform in +-1 / sqrt(columns) (Kaiming's bound for a = sqrt(5)).
    """
    model.requires_grad_(False)
    wanted = tuple(name for target in settings.targets for name in TARGETS[target])
    found = [(name, module) for name, module in model.named_modules() if name.endswith(wanted)]
    for index, (name, module) in enumerate(found):
        assert isinstance(module, nn.Linear)
        layer = LoraLinear(module, len(parts_of(name, MERGED)), settings.rank, settings.alpha / settings.rank)
        shape, bound = layer.lora_A.shape, 1 / math.sqrt(layer.lora_A.shape[1])
        numbers = torch.from_numpy(uniform(stream_key(seed, ADAPTER, index), shape.numel()))
        layer.lora_A.data.copy_((2 * numbers - 1).view(shape) * bound)
        model.set_submodule(name, layer)
