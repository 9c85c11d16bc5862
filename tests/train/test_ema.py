"""The average of the weights, wherever it lies."""

import pytest
import torch

from train.ema import Ema


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_the_formula_says(dtype: torch.dtype, offload: bool):
    weights = {name: torch.randn(5, 3, dtype=dtype) for name in "ab"}
    expected = {name: weight.double() for name, weight in weights.items()}
    ema = Ema(weights, 0.6, offload=offload)
    for step in range(8):
        for weight in weights.values():
            weight += torch.randn(5, 3)
        ema.update(step)
        ema.settle()
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * x + (1 - decay) * weights[name].double() for name, x in expected.items()}
    for name, average in ema.average.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_the_hosts_memory_it_is_the_same_though_weights_change_at_once(dtype: torch.dtype):
    weights = {str(number): torch.randn(2048, 2048, device="cuda", dtype=dtype) for number in range(20)}
    there, here = Ema(weights, 0.9), Ema(weights, 0.9, offload=True)
    for step in range(10):
        for weight in weights.values():
            weight += 1
        here.update(step)
        there.update(step)
        here.settle()
    for name, average in here.average.items():
        assert average.device.type == "cpu"
        assert torch.equal(average, there.average[name].cpu())
