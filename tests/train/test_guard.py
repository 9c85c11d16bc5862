"""Steps that are not taken, against a plain rule over the whole history."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from train.guard import Guard, skipped
from train.settings import GuardSettings

NORMS = st.one_of(st.floats(0.1, 1.0), st.floats(0.0, 1e4), st.sampled_from([0.0, math.nan, math.inf]))
SEQUENCES = st.lists(NORMS, min_size=10, max_size=40)
SETTINGS = st.builds(GuardSettings, norm_factor=st.floats(1.5, 10), window=st.integers(1, 12), patience=st.just(10**6))


def taken(guard: Guard, norms: list[float], first: int = 0) -> list[bool]:
    return [guard.refuse(step, 1.0, norm) is None for step, norm in enumerate(norms, first)]


def expected(settings: GuardSettings, norms: list[float]) -> list[bool]:
    """The rule over the whole history."""
    history: list[float] = []
    decisions = []
    for norm in norms:
        usual = float(np.median(history[-settings.window :])) if history else 0.0
        spike = 4 * (len(history) + 1) > settings.window and usual > 0 and norm > settings.norm_factor * usual
        decisions.append(bool(np.isfinite(norm)) and not spike)
        if decisions[-1]:
            history.append(norm)
    return decisions


@given(settings=SETTINGS, norms=SEQUENCES)
def test_spikes_are_those_of_the_rule(settings: GuardSettings, norms: list[float]):
    assert taken(Guard(settings), norms) == expected(settings, norms)


@given(settings=SETTINGS, norms=SEQUENCES, cut=st.integers(0, 40))
def test_a_resumed_run_decides_as_the_uninterrupted_one(settings: GuardSettings, norms: list[float], cut: int):
    whole, before, after = Guard(settings), Guard(settings), Guard(settings)
    decisions = taken(whole, norms)
    start = taken(before, norms[:cut])
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    assert start + taken(after, norms[cut:], cut) == decisions
    assert after.state() == whole.state()


@given(settings=SETTINGS, norms=st.lists(st.floats(0.01, 100), max_size=40), power=st.integers(-20, 20))
def test_the_scale_of_the_gradient_does_not_matter(settings: GuardSettings, norms: list[float], power: int):
    assert taken(Guard(settings), [norm * 2.0**power for norm in norms]) == taken(Guard(settings), norms)


@given(norm=st.floats(0, allow_infinity=False), settings=SETTINGS)
def test_a_constant_norm_is_never_a_spike(norm: float, settings: GuardSettings):
    assert all(taken(Guard(settings), [norm] * 30))


@given(norms=st.lists(st.floats(1, 9.9), max_size=200))
def test_the_defaults_let_tenfold_changes_pass(norms: list[float]):
    assert all(taken(Guard(GuardSettings()), norms))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_from_the_first_step_on(value: float):
    guard = Guard(GuardSettings())
    assert guard.refuse(0, value, 1.0) == f"loss is not finite: {value}"
    assert guard.refuse(1, 1.0, value) == f"gradient norm is not finite: {value}"
    assert guard.refuse(2, 1.0, 1.0) is None


def test_a_reason_has_the_numbers():
    guard = Guard(GuardSettings(window=4))
    for step in range(5):
        assert guard.refuse(step, 1.0, 5.8) is None
    assert guard.refuse(5, 1.0, 81.2) == "gradient norm 81.2 is 14 times the median 5.8 of the last 4 steps"


def test_steps_in_a_row_end_the_run():
    settings = GuardSettings(patience=3)
    guard = Guard(settings)
    for step in range(0, 1000, 3):
        assert guard.refuse(step, math.nan, 1.0) is not None
        assert guard.refuse(step + 1, math.nan, 1.0) is not None
        assert guard.refuse(step + 2, 1.0, 1.0) is None
    assert guard.refuse(1002, math.nan, 1.0) is not None
    assert guard.refuse(1003, math.nan, 1.0) is not None
    resumed = Guard(settings)
    resumed.restore(guard.state())
    message = r"3 steps in a row, 1,002 to 1,004, .* loss is not finite: nan\n.*checkpoint.*learning_rate"
    with pytest.raises(UserError, match=message):
        resumed.refuse(1004, math.nan, 1.0)


def test_a_record_is_json():
    record = skipped(7, "loss is not finite: nan", math.nan, 3.5, iter(["ab", "cd"]))
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "step": 7,
        "reason": "loss is not finite: nan",
        "loss": None,
        "norm": 3.5,
        "image_ids": ["ab", "cd"],
    }
