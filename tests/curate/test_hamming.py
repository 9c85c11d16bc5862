"""Pairs of hashes within a distance, against a comparison of every two."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.dedupe import hamming
from curate.dedupe.hamming import _Choice, _Group, pairs

Hashes = NDArray[np.uint64]

ENDS = (0, 1, 1 << 63, (1 << 64) - 1)
DISTANCES = st.integers(0, 8)
SEEDS = st.integers(0, 2**32 - 1)


def every_two(hashes: Hashes, distance: int) -> NDArray[np.int64]:
    """What `pairs` must return."""
    rows = []
    for first in range(0, len(hashes), 16):
        bits = np.bitwise_count(hashes[first : first + 16, None] ^ hashes[first:])
        one, other = np.nonzero(bits <= distance)
        rows.append(np.stack([one, other], axis=1)[one < other] + first)
    return np.concatenate([np.empty((0, 2), np.int64), *rows])


def flipped(random: np.random.Generator, hashes: Hashes, count: int, bits: int, among: int = 64) -> Hashes:
    """Hashes chosen at random, at most so many of the `among` lowest bits of each flipped."""
    flips = np.uint64(1) << random.integers(0, among, (count, bits), dtype=np.uint64)
    flips[random.random((count, bits)) < 0.3] = 0
    masks: Hashes = np.bitwise_or.reduce(flips, axis=1)
    return random.choice(hashes, count) ^ masks


def shuffled(random: np.random.Generator, hashes: Hashes) -> Hashes:
    return random.permutation(np.unique(hashes))


def clusters(seed: int, size: int, count: int) -> Hashes:
    """Hashes of which most are near some others; the ends of the range are among them."""
    random = np.random.default_rng(seed)
    centres = np.append(random.integers(0, 2**64, count, dtype=np.uint64), np.array(ENDS, np.uint64))
    return shuffled(random, np.append(centres, flipped(random, centres, size, int(random.integers(1, 10)))))


def crowd(seed: int, size: int, among: int) -> Hashes:
    """Hashes that agree in all but the `among` lowest bits, some of them near each other; more that do not."""
    random = np.random.default_rng(seed)
    prefix = random.integers(0, 2**64, dtype=np.uint64) << np.uint64(among)
    hashes = prefix | random.integers(0, 1 << among, size, dtype=np.uint64)
    others = random.integers(0, 2**64, 3 * size, dtype=np.uint64)
    return shuffled(random, np.concatenate([hashes, others, flipped(random, hashes, size // 2, 4, among)]))


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, size=st.integers(1, 600), count=st.integers(1, 20), distance=DISTANCES)
def test_clusters(seed: int, size: int, count: int, distance: int) -> None:
    hashes = clusters(seed, size, count)
    assert np.array_equal(pairs(hashes, distance), every_two(hashes, distance))


@settings(deadline=None, max_examples=300)
@given(
    hashes=st.lists(st.one_of(st.sampled_from(ENDS), st.integers(0, 2**64 - 1), st.integers(0, 255)), unique=True),
    distance=DISTANCES,
)
@example(hashes=[], distance=0)
@example(hashes=[], distance=8)
@example(hashes=[0], distance=8)
@example(hashes=[2**64 - 1, 0], distance=8)
@example(hashes=[1, 0], distance=0)
@example(hashes=[2**64 - 1, 2**63 - 1], distance=1)
def test_any_hashes(hashes: list[int], distance: int) -> None:
    given = np.array(hashes, np.uint64)
    found = pairs(given, distance)
    assert found.shape == (len(found), 2)
    assert found.dtype == np.int64
    assert np.array_equal(found, every_two(given, distance))


@settings(deadline=None, max_examples=25)
@given(
    seed=SEEDS, size=st.integers(1, 400), distance=st.integers(0, 4), long=st.integers(1, 4), held=st.integers(0, 50)
)
def test_small_limits(seed: int, size: int, distance: int, long: int, held: int) -> None:
    """Chunks, long runs and packing by a few hashes, at prices that make every choice of blocks worth its sort."""
    hashes = clusters(seed, size, 4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CHUNK": 8, "LONG": long, "HELD": held, "SORT": 1e-4}.items():
            patch.setattr(hamming, name, value)
        assert np.array_equal(pairs(hashes, distance), every_two(hashes, distance))


@settings(deadline=None, max_examples=6)
@given(seed=SEEDS, size=st.integers(1500, 2500), among=st.integers(22, 40), distance=st.integers(0, 5))
def test_crowds(seed: int, size: int, among: int, distance: int) -> None:
    hashes = crowd(seed, size, among)
    assert np.array_equal(pairs(hashes, distance), every_two(hashes, distance))


def test_crowds_are_searched_by_their_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[int] = []
    sort = _Choice.sort

    def seen(choice: _Choice) -> _Group:
        keys.append(choice.group.key)
        return sort(choice)

    monkeypatch.setattr(_Choice, "sort", seen)
    hashes = crowd(0, 3000, 24)
    found = pairs(hashes, 4)
    assert any(keys), "no long run was searched"
    assert np.array_equal(found, every_two(hashes, 4))


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, distance=DISTANCES, threads=st.integers(2, 5))
def test_threads_change_nothing(seed: int, distance: int, threads: int) -> None:
    hashes = clusters(seed, 3000, 50)
    assert np.array_equal(pairs(hashes, distance, threads), pairs(hashes, distance, 1))


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, distance=DISTANCES)
def test_order_of_input_only_renames(seed: int, distance: int) -> None:
    """The pairs of hashes are the same; the indices are those of the input."""
    hashes = clusters(seed, 300, 5)
    before = hashes.copy()
    found, ascending = pairs(hashes, distance), np.sort(hashes)
    assert np.array_equal(hashes, before)
    assert (found[:, 0] < found[:, 1]).all()
    assert np.array_equal(np.lexsort(found.T[::-1]), np.arange(len(found)))
    of_ascending = {frozenset(pair) for pair in ascending[pairs(ascending, distance)].tolist()}
    assert {frozenset(pair) for pair in hashes[found].tolist()} == of_ascending


@pytest.mark.parametrize("hashes", [[7, 7], [3, 1, 2, 3], [2**64 - 1, 0, 2**64 - 1]])
def test_duplicates_are_refused(hashes: list[int]) -> None:
    with pytest.raises(ValueError, match="a hash occurs twice"):
        pairs(np.array(hashes, np.uint64), 4)


@pytest.mark.parametrize("distance", [-1, 9, 64])
def test_distance_out_of_range_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=f"the distance is {distance}, but must be 0 to 8"):
        pairs(np.array([1, 2], np.uint64), distance)
