"""What is kept of the forward pass for the backward pass, and what is computed a second time."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from train.model.config import DiTConfig
from train.settings import Precision, Recompute

# It warns of operators that work in place, of which there are none in a block.
logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

EXPENSIVE = {"mm", "addmm", "_scaled_mm", "flash4", "_varlen_attn"}
"""Operators whose results are kept where others are recomputed."""
WIDER = 4
"""The results of a product that makes rows wider than so many times are most of what a block keeps."""


class Block(nn.Module):
    """A part of the transformer, and what of its forward pass the compiler is to keep."""

    recompute: Recompute = "nothing"
    compute: Callable[..., Tensor]
    """The forward pass."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """`compute`, (tokens, hidden) -> (tokens, hidden)."""
        contexts = CONTEXTS.get(self.recompute)
        if contexts is None:
            return self.compute(x, *others)
        out: Tensor = checkpoint(
            # Of what is handed over, PyTorch 2.11 makes constants: a graph for every number of samples.
            lambda x: self.compute(x, *others),
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=contexts,
        )
        return out


def run(block: Callable[..., Tensor], recompute: Recompute, *arguments: Any) -> Tensor:
    """Call a block."""
    if recompute != "everything" or not torch.is_grad_enabled():
        return block(*arguments)
    # No random numbers are drawn inside a block, so there is no generator state to keep.
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out


def _cheap(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    is_expensive = operator.overloadpacket.__name__ in EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE


def _most(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    if operator.overloadpacket.__name__ in ("mm", "_scaled_mm"):
        rows, columns = arguments[1].shape
        if columns > WIDER * rows:
            return CheckpointPolicy.PREFER_RECOMPUTE
    return _cheap(context, operator, *arguments, **options)


CONTEXTS = {
    "cheap": partial(create_selective_checkpoint_contexts, _cheap),
    "most": partial(create_selective_checkpoint_contexts, _most),
}
"""What a checkpoint of compiled code goes by; `nothing` needs none, and for `everything` there is one around it."""


def kept_bytes(config: DiTConfig, tokens: int, recompute: Recompute, precision: Precision = "bfloat16") -> float:
    """What the forward pass of compiled blocks leaves in memory for the backward pass.

    The formulas count, per token and block, what the compiler keeps: inputs of products, of norms and of attention, and
    of what is recomputed that of the first. They give what was measured on an H200 within 3 % (bench/results). In
    float8 the inputs of products take a byte less, but that of `to_out` is one more: attention keeps its output itself.
    """
    hidden, keys, wide = config.hidden_size, config.kv_dim, config.ffn_dim
    whole = 2 * (9 * hidden + 3 * keys + 3 * wide) - (hidden + wide if precision == "float8" else 0)
    most = 2 * (5 * hidden + 2 * keys)
    kept = {"nothing": whole, "cheap": most + 4 * wide, "most": most, "everything": 2 * hidden}
    blocks = config.num_layers + config.num_refiner_layers  # Those that refine text have few tokens.
    # The block at work is whole, with gradients beside it; where it is computed a second time, more so.
    return tokens * (blocks * kept[recompute] + (3 if recompute == "everything" else 1) * whole)
