"""AdamW, and its state as plain tensors."""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from shared.errors import UserError
from train.settings import OptimizerSettings


def adamw(weights: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW with a state of float32, fused into one kernel where there is one, or of int8 (torchao).

    Raises UserError where torchao is needed and missing.
    """
    owned = list(weights) or [nn.Parameter(torch.empty(0))]  # A rank may own none, and no optimiser takes none.
    values = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.states == "float32":
        return torch.optim.AdamW(owned, fused=True, **values)  # type: ignore[arg-type]
    try:
        from torchao.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise UserError(f"train.optimizer.states = int8: {error}; pip install 'illustrious-lu[fast]'") from None
    optimizer: torch.optim.Optimizer = AdamW8bit(owned, **values)
    return optimizer


def rate_share(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The share of the learning rate that a step has: rising over the warmup, then falling as scheduled."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """From the next step on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, which compiles its step.
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


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
        weight.grad = torch.zeros_like(weight)
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
