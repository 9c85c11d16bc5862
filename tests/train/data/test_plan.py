"""The plan: every sample equally often, in an order that nothing but the seed decides; balanced ranks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.plan import Plan, assign, receipt


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 30))
def test_counts_of_samples_never_differ_by_more_than_one(seed: int, samples: int, batch: int, steps: int):
    plan = Plan(seed=seed, samples=samples, batch=batch)
    counts = Counter(int(index) for step in range(steps) for index in plan.step(step))
    values = [counts[index] for index in range(samples)]
    assert sum(values) == steps * batch
    assert max(values) - min(values) <= 1


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 15), st.integers(1, 15))
def test_stream_does_not_depend_on_the_batch(seed: int, samples: int, batch: int, other: int):
    def stream(size: int) -> list[int]:
        plan = Plan(seed=seed, samples=samples, batch=size)
        return np.concatenate([plan.step(step) for step in range(-(-60 // size))])[:60].tolist()

    assert stream(batch) == stream(other)


@given(
    st.integers(0, 2**40),
    st.lists(st.floats(0.05, 20), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 12),
)
def test_weighted_samples_come_as_often_as_they_weigh(seed: int, weights: list[float], batch: int, epochs: int):
    scaled = np.array(weights) / np.mean(weights)
    plan = Plan(seed, len(scaled), batch, scaled)
    steps = -(-epochs * len(scaled) // batch)
    stream = np.concatenate([plan.step(step) for step in range(steps)])
    counts = np.bincount(stream, minlength=len(scaled))
    # Between two ends of epochs, where it is within one, a sample may have come with all of its share, or none.
    share = len(stream) / len(scaled) * scaled
    assert (np.abs(counts - share) <= np.ceil(scaled) + 1).all()
    other = Plan(seed, len(scaled), batch + 1, scaled)
    again = np.concatenate([other.step(step) for step in range(steps)])
    assert again[: len(stream)].tolist() == stream.tolist()


def test_epochs_and_seeds_are_shuffled_differently():
    plan = Plan(seed=0, samples=50, batch=50)
    assert not np.array_equal(plan.step(0), plan.step(1))
    assert not np.array_equal(plan.step(0), Plan(seed=1, samples=50, batch=50).step(0))


def test_golden_order():
    # A committed order: changing it changes every run, and needs a line in the changelog.
    plan = Plan(seed=0, samples=10, batch=4)
    assert [plan.step(step).tolist() for step in range(5)] == [
        [1, 9, 0, 8],
        [4, 6, 7, 2],
        [3, 5, 9, 1],
        [5, 2, 4, 7],
        [8, 6, 0, 3],
    ]
    assert receipt(plan.step(0)) == "dbc641905408ff41"
    weighted = Plan(seed=0, samples=4, batch=4, weights=np.array([0.5, 0.5, 1.0, 2.0]), stream=1)
    assert [weighted.step(step).tolist() for step in range(3)] == [[0, 2, 3, 3], [2, 1, 3, 3], [3, 0, 3, 2]]


def test_receipt_tells_orders_apart():
    assert receipt(np.array([1, 2])) != receipt(np.array([2, 1]))
    assert receipt(np.array([1, 2], dtype=np.int32)) == receipt(np.array([1, 2], dtype=np.int64))


@given(st.lists(st.integers(1, 500), min_size=4, max_size=60), st.integers(1, 4), st.integers(1, 1500))
def test_every_position_is_assigned_once_within_the_budget(tokens: list[int], ranks: int, budget: int):
    result = assign(tokens, ranks, budget)
    assert sorted(i for rank in result for micro in rank for i in micro) == list(range(len(tokens)))
    assert len({len(rank) for rank in result}) == 1, "all ranks run the same number of micro-batches"
    for rank in result:
        assert rank[-1], "the last micro-batch, the one that synchronises, is never empty"
        for micro in rank:
            assert len(micro) <= 1 or sum(tokens[i] for i in micro) <= budget


def test_ranks_finish_together():
    tokens = np.random.default_rng(0).integers(1000, 4400, size=768).tolist()
    loads = [sum(tokens[i] for micro in rank for i in micro) for rank in assign(tokens, 8, 16_384)]
    assert max(loads) / (sum(loads) / 8) < 1.001


def test_as_few_micro_batches_as_possible_when_it_is_easy():
    assert len(assign([100] * 12, ranks=2, budget=300)[0]) == 2


def test_fewer_samples_than_ranks_is_an_error_with_a_way_out():
    with pytest.raises(ValueError, match="use at least 4"):
        assign([1, 2, 3], ranks=4, budget=10)
