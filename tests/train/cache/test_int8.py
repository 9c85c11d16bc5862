"""int8 in blocks: the error never exceeds that of the format, whatever the numbers are."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from train.cache.int8 import BLOCK, BOUND, TINY, quantised, restored, size

NUMBERS = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-4, 4, width=32)


def back(tensor: Tensor) -> Tensor:
    return restored(quantised(tensor), tensor.shape)


@given(arrays(np.float32, array_shapes(max_dims=3, min_side=0, max_side=70), elements=NUMBERS))
@example(np.zeros((2, 40), np.float32))
@example(np.full(33, 3.3e38, np.float32))
@example(np.array([1e-45, 0, -1e-39], np.float32))
def test_errors_are_within_half_a_scale(given_: np.ndarray):
    tensor = torch.from_numpy(given_)
    data = quantised(tensor)
    assert data.dtype == torch.uint8
    assert len(data) == size(tensor.numel())
    found = back(tensor)
    assert (found.dtype, found.shape) == (torch.bfloat16, tensor.shape)
    numbers, errors = tensor.double().flatten(), (found.double() - tensor.double()).abs().flatten()
    for start in range(0, len(numbers), BLOCK):
        block = slice(start, start + BLOCK)
        largest = float(numbers[block].abs().max())
        half_a_scale = max(largest / 127, TINY) * (1 + 2**-8) / 2
        # What is given back is rounded to bfloat16 once more.
        assert float(errors[block].max()) <= half_a_scale + 2**-8 * (largest + half_a_scale)
    if largest_of(tensor) > 1e-30:
        assert float(errors.norm() / numbers.norm()) <= BOUND * (1 + 2**-8) + 2**-8 * (1 + BOUND)


def largest_of(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def test_the_bound_is_met_but_for_little_by_the_worst_block():
    # One large number, the others half way between two multiples of the scale.
    worst = torch.full((BLOCK,), 0.5)
    worst[0] = 127
    error = (back(worst).double() - worst.double()).norm() / worst.double().norm()
    assert BOUND * 0.98 < float(error) < BOUND


def test_normal_numbers():
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    error = (back(x).double() - x).norm() / x.norm()
    # sqrt(E[largest of 32]^2 / 127^2 / 12), and the rounding to bfloat16 (0.0017): 2.07^2 + its variance, by drawing.
    largest = x[: 300_000 // BLOCK * BLOCK].view(-1, BLOCK).abs().amax(1)
    expected = ((largest / 127).square().mean() / 12 + 0.0017**2) ** 0.5
    assert float(error) == pytest.approx(float(expected), rel=0.02)


def test_by_hand():
    data = quantised(torch.tensor([[127.0, -64.0], [0.4, 0.6]]))
    one = torch.tensor([1.0]).bfloat16().view(torch.uint8).tolist()
    assert data.tolist() == [*one, 127, 256 - 64, 0, 1]
    assert size(64) == 64 + 2 * 2


def test_a_large_channel_costs_its_own_block_alone():
    x = torch.randn(10, 4 * BLOCK, generator=torch.Generator().manual_seed(0))
    large = x.clone()
    large[:, 5] *= 1000
    assert torch.equal(back(large)[:, BLOCK:], back(x)[:, BLOCK:])
