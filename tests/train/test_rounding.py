"""Stochastic rounding: to a neighbour, right on average, the same after an interruption and on any rank."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from train.optimizer import adamw, restore_state, set_learning_rate, state_tensors
from train.rounding import round_stochastically
from train.settings import OptimizerSettings

MAGNITUDES = st.floats(2.0**-100, 2.0**100, width=32) | st.just(0.0)
FLOATS = st.builds(math.copysign, MAGNITUDES, st.sampled_from([-1.0, 1.0]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: float) -> tuple[float, float]:
    """The largest bfloat16 that is not above a number, and the smallest that is not below."""
    spacing = 2.0 ** (math.frexp(value)[1] - 8)  # Of 8 significant bits.
    return math.floor(value / spacing) * spacing, math.ceil(value / spacing) * spacing


@given(st.lists(FLOATS, min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_a_number_goes_to_a_neighbour_and_what_is_a_bfloat16_stays(values: list[float], seed: int):
    rounded = round_stochastically(torch.tensor(values), generator(seed))
    assert rounded.dtype == torch.bfloat16
    assert all(found in neighbours(value) for found, value in zip(rounded.tolist(), values, strict=True))
    assert torch.equal(round_stochastically(rounded.float(), generator(seed + 1 & 2**64 - 1)), rounded)


@pytest.mark.parametrize("value", [1.001, -1.001, 0.1, 3e-5, -1e20, 255.99])
def test_the_mean_of_many_is_the_number(value: float):
    count, exact = 100_000, torch.tensor(value).item()
    low, high = neighbours(exact)
    up = (exact - low) / (high - low)
    rounded = round_stochastically(torch.full((count,), value), generator())
    assert set(rounded.tolist()) == {low, high}
    error = (high - low) * math.sqrt(up * (1 - up) / count)
    assert rounded.double().mean().item() == pytest.approx(exact, abs=4 * error)


def weights_of(*names: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, nn.Parameter]:
    """Weights that are bfloat16's, whatever they are stored as."""
    found = {}
    for number, name in enumerate(names):
        values = torch.randn(64, 64, generator=generator(number)).bfloat16()
        found[name] = nn.Parameter(values.to(dtype))
        found[name].grad_dtype = torch.float32
    return found


def step(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    for name, weight in weights.items():
        weight.grad = torch.randn(weight.shape, generator=generator(1000 * number + ord(name)))
    optimizer.step()


def values(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def test_a_rate_far_below_what_bfloat16_resolves_moves_weights_on_average():
    rate, steps, resolution = 1e-5, 100, 2.0**-7
    settings = OptimizerSettings(learning_rate=rate)
    one = nn.Parameter(torch.ones(100, 100).bfloat16())
    one.grad_dtype = torch.float32
    nearest = nn.Parameter(torch.ones(100, 100).bfloat16())
    rounding, plain = adamw({"one": one}, settings), torch.optim.AdamW([nearest], lr=rate, eps=1e-15, weight_decay=0)
    for _ in range(steps):
        one.grad, nearest.grad = torch.full(one.shape, -1.0), torch.full(one.shape, -1.0).bfloat16()
        rounding.step()
        plain.step()
    assert torch.equal(nearest, torch.ones_like(nearest))
    # With gradients that are all alike, AdamW moves a weight by the rate in every step.
    error = math.sqrt(steps * rate * resolution / one.numel())
    assert (one.double().mean().item() - 1) == pytest.approx(steps * rate, abs=4 * error)


def test_the_arithmetic_is_that_of_float32():
    settings = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1)
    rounded, exact = weights_of("a", "b"), weights_of("a", "b", dtype=torch.float32)
    optimizers = adamw(rounded, settings), adamw(exact, settings)
    step(rounded, optimizers[0], 0)
    step(exact, optimizers[1], 0)
    theirs = state_tensors(exact, optimizers[1])
    for name, tensor in state_tensors(rounded, optimizers[0]).items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])
    for name, weight in rounded.items():
        pairs = zip(weight.flatten().tolist(), exact[name].flatten().tolist(), strict=True)
        assert all(found in neighbours(value) for found, value in pairs)


@pytest.mark.parametrize("states", ["float32", "int8"])
def test_another_optimiser_goes_on_from_the_state(states: str):
    settings = OptimizerSettings(learning_rate=1e-3, states=states)  # type: ignore[arg-type]
    whole, cut = weights_of("a", "b"), weights_of("a", "b")
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step.
        optimizer = adamw(whole, settings, seed=3)
        for number in range(2):
            step(whole, optimizer, number)
        again = adamw(cut, settings, seed=3)
        restore_state(state_tensors(whole, optimizer), cut, again)
        for name, value in values(whole).items():
            cut[name].data.copy_(value)
        step(whole, optimizer, 2)
        step(cut, again, 2)
    for name in whole:
        assert torch.equal(whole[name], cut[name])


def test_what_a_weight_becomes_depends_on_seed_and_name_and_on_no_other_weight():
    def stepped(*names: str, seed: int = 0) -> dict[str, Tensor]:
        weights = weights_of(*names)
        optimizer = adamw(weights, OptimizerSettings(), seed)
        step(weights, optimizer, 0)
        return values(weights)

    together, alone = stepped("a", "b"), stepped("a")
    assert torch.equal(together["a"], alone["a"])
    assert not torch.equal(alone["a"], stepped("a", seed=1)["a"])


def test_no_two_steps_and_no_two_weights_draw_the_same_numbers():
    weights = {name: nn.Parameter(torch.ones(64, 64).bfloat16()) for name in "ab"}
    optimizer = adamw(weights, OptimizerSettings())
    set_learning_rate(optimizer, 1e-3)
    drawn = []
    for _ in range(2):
        for weight in weights.values():
            weight.grad_dtype = torch.float32
            weight.data.fill_(1)
            weight.grad = torch.ones(64, 64)
        optimizer.step()
        drawn += values(weights).values()
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 4
