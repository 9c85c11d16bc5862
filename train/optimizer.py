"""AdamW, and its state as plain tensors."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from train.rounding import Rounding
from train.settings import OptimizerSettings


def adamw(
    weights: Mapping[str, nn.Parameter],
    settings: OptimizerSettings,
    seed: int = 0,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """AdamW with a state of float32, fused into one kernel where there is one, or of int8 (torchao).

    Weights of bfloat16 are rounded stochastically, by random numbers of the `seed`. `factors` on the learning rate are
    by weight; default: 1. Raises UserError where torchao is needed and missing.
    """
    optimizer = _adamw(_groups(weights, settings, factors), settings)
    stored = {weight.dtype for weight in weights.values()}
    return Rounding(optimizer, weights, seed) if torch.bfloat16 in stored else optimizer


def _groups(
    weights: Mapping[str, nn.Parameter], settings: OptimizerSettings, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Weights that are stepped alike. Vectors, the weights of norms and biases, do not decay."""
    groups: defaultdict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, weight in weights.items():
        groups[factors.get(name, 1.0), weight.dim() > 1].append(weight)
    if not groups:  # A rank may own none, and no optimiser takes none.
        groups[1.0, False].append(nn.Parameter(torch.empty(0)))
    return [
        {"params": members, "factor": factor, "weight_decay": settings.weight_decay if is_matrix else 0.0}
        for (factor, is_matrix), members in groups.items()
    ]


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    values: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
    if settings.states == "float32":
        return torch.optim.AdamW(groups, fused=True, **values)
    try:
        from torchao.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise UserError(f"train.optimizer.states = int8: {error}; pip install 'illustrious-lu[fast]'") from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **values)
    return optimizer


def rate_share(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The share of the learning rate that a step has: rising over the warmup, then falling as scheduled."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """From the next step on, times the factor of each group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, which compiles its step.
            group["lr"].fill_(rate * group["factor"])
        else:
            group["lr"] = rate * group["factor"]


def state_tensors(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state by the names of the weights, which outlive any order or grouping of them."""
    return {
        f"{name}/{part}": tensor.contiguous()
        for name, weight in weights.items()
        for key, value in optimizer.state.get(weight, {}).items()
        for part, tensor in _parts(key, torch.as_tensor(value))
    }


@torch.no_grad()
def restore_state(
    tensors: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Take over what `state_tensors` gave; the weights must be restored afterwards. KeyErrors name what is missing."""
    if not tensors:
        return  # No step had been taken, so there was none.
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight, dtype=torch.float32)
    optimizer.step()  # In its first one, it makes its state.
    optimizer.zero_grad(set_to_none=True)
    for name, weight in weights.items():
        for key, value in optimizer.state[weight].items():
            for part, tensor in _parts(key, value):
                tensor.copy_(tensors[f"{name}/{part}"])


def _parts(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors of which a value consists: itself, or those of a quantised one."""
    if not hasattr(value, "__tensor_flatten__"):
        yield key, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield f"{key}.{part}", getattr(value, part)
