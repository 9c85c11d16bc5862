"""AdamW over groups of weights, against PyTorch's over one."""

import pytest
import torch
from torch import nn

from train.optimizer import adamw, set_learning_rate
from train.settings import OptimizerSettings


def weights_of(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    shapes = {"matrix": (64, 64), "vector": (64,), "slow": (64, 64), "slow_vector": (64,)}
    generator = torch.Generator().manual_seed(0)
    found = {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}
    for weight in found.values():
        weight.grad_dtype = torch.float32
        weight.grad = torch.randn(weight.shape, generator=generator)
    return found


@pytest.mark.parametrize("states", ["float32", "int8"])
def test_a_factor_is_on_the_rate_and_only_matrices_decay(states: str):
    settings = OptimizerSettings(states=states, weight_decay=0.1)  # type: ignore[arg-type]
    ours, theirs = weights_of(), weights_of()
    optimizer = adamw(ours, settings, factors={"slow": 0.25, "slow_vector": 0.25})
    rate = 1e-2
    set_learning_rate(optimizer, rate)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step.
        optimizer.step()
    for name, weight in theirs.items():
        decay = 0.0 if "vector" in name else 0.1
        factor = 0.25 if "slow" in name else 1.0
        torch.optim.AdamW([weight], lr=factor * rate, betas=(0.9, 0.95), eps=1e-15, weight_decay=decay).step()
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-7)


def test_rounded_weights_have_factors_too():
    ours = weights_of(torch.bfloat16)
    before = {name: weight.detach().clone() for name, weight in ours.items()}
    optimizer = adamw(ours, OptimizerSettings(), factors={"slow": 0.25})
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    # The first step of AdamW is as long as the rate.
    moved = {name: (weight - before[name]).abs().double().mean().item() for name, weight in ours.items()}
    assert moved["matrix"] == pytest.approx(0.1, rel=0.01)
    assert moved["slow"] == pytest.approx(0.025, rel=0.01)
