"""What is kept of the forward pass for the backward pass, and what is computed a second time."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train.model.config import DiTConfig

Recompute = Literal["nothing", "cheap", "everything"]
"""In each block: nothing that takes time; what takes little for the memory it frees; everything."""

BUDGET = 0.5
"""Share of the memory that `cheap` keeps of what `nothing` would."""

Precision = Literal["bfloat16", "float8"]
"""Of the large products of the joint blocks."""


def run(block: Callable[..., Tensor], recompute: Recompute, *arguments: Any) -> Tensor:
    """Call a block."""
    if recompute != "everything" or not torch.is_grad_enabled():
        return block(*arguments)
    # No random numbers are drawn inside a block, so there is no generator state to keep.
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out


def tell_compiler(recompute: Recompute) -> None:
    """Before blocks are compiled: `cheap` is for the compiler to decide, which knows what is cheap."""
    torch._functorch.config.activation_memory_budget = BUDGET if recompute == "cheap" else 1.0


def kept_bytes(config: DiTConfig, tokens: int, recompute: Recompute, precision: Precision = "bfloat16") -> float:
    """What the forward pass of compiled blocks leaves in memory for the backward pass.

    The formula for `nothing` counts, per token and block, what the compiler keeps: the inputs of the products, of the
    norms and of attention. It gives what was measured on an H100 in bfloat16 within 6 % (bench/results). In float8
    the inputs of products take a byte less, but that of `to_out` is one more: attention keeps its output itself.
    """
    block = 2 * tokens * (11 * config.hidden_size + 2 * config.ffn_dim)
    if precision == "float8":
        block -= tokens * (config.hidden_size + config.ffn_dim)
    blocks = config.num_layers + config.num_refiner_layers  # Those that refine text have few tokens.
    share = {"nothing": 1.0, "cheap": BUDGET, "everything": 2 * tokens * config.hidden_size / block}[recompute]
    # One block is whole at any time, and the gradients of all that is in it beside it.
    return block * (blocks * share + 3)
