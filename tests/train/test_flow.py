"""Flow matching: the conventions other trainers got wrong, each against a number from elsewhere."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from train import flow
from train.data.random import normal, stream_key


def test_shift_goes_through_the_two_published_points():
    assert flow.shift(256) == pytest.approx(0.5)
    assert flow.shift(4096) == pytest.approx(1.15)


def test_noise_fraction_at_1024_px_has_the_published_median_and_mean():
    numbers = torch.from_numpy(normal(stream_key(0), 1_000_000))
    noise_fraction = 1 - flow.timesteps(numbers, flow.shift(4096))
    assert noise_fraction.median().item() == pytest.approx(0.760, abs=1e-3)
    assert noise_fraction.mean().item() == pytest.approx(0.723, abs=1e-3)


@given(st.floats(-6, 6), st.floats(0.1, 2))
def test_timesteps_follow_the_formula_as_it_is_published(number: float, m: float):
    t = 1 / (1 + math.exp(-number))
    s = 1 - t
    expected = 1 - math.exp(m) / (math.exp(m) + 1 / s - 1)
    assert flow.timesteps(torch.tensor([number], dtype=torch.float64), m).item() == pytest.approx(expected, abs=1e-6)


def test_timesteps_are_float32_and_inside_the_interval():
    t = flow.timesteps(torch.tensor([-6.0, 6.0]), 1.15)
    assert t.dtype == torch.float32
    assert 0 < t.min() < t.max() < 1


def test_time_runs_from_noise_to_data():
    data, noise = torch.randn(5, 4), torch.randn(5, 4)
    assert torch.equal(flow.noisy(data, noise, torch.tensor(0.0)), noise)
    assert torch.equal(flow.noisy(data, noise, torch.tensor(1.0)), data)
    # From any time on, following the velocity for the rest of the way arrives at the data.
    x = flow.noisy(data, noise, torch.tensor(0.3))
    assert torch.allclose(x + 0.7 * flow.velocity(data, noise), data, atol=1e-6)


def test_loss_is_the_mean_of_each_sample_whatever_its_size():
    prediction, target = torch.randn(10, 4), torch.randn(10, 4)
    sample = torch.tensor([0] * 7 + [1] * 3)
    losses = flow.sample_losses(prediction, target, sample, 2)
    for index, part in enumerate((slice(0, 7), slice(7, 10))):
        expected = torch.nn.functional.mse_loss(prediction[part], target[part])
        assert losses[index].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_schedule_equals_the_scheduler_of_diffusers(steps: int):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    assert flow.schedule(steps, 6.0) == pytest.approx((1 - scheduler.sigmas).tolist(), abs=1e-6)


def test_guidance_never_lengthens_the_prediction():
    conditional, unconditional = torch.randn(6, 4), torch.randn(6, 4)
    strong = flow.guided(conditional, unconditional, 4.0)
    assert strong.norm().item() == pytest.approx(conditional.norm().item(), rel=1e-5)
    raw = unconditional + 4.0 * (conditional - unconditional)
    assert torch.nn.functional.cosine_similarity(strong.ravel(), raw.ravel(), dim=0).item() == pytest.approx(
        1, abs=1e-5
    )
    assert torch.allclose(flow.guided(conditional, unconditional, 1.0), conditional, atol=1e-6)
