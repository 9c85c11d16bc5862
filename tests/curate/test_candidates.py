"""Candidates and stars together, against the definition on all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedupe import candidates as module
from curate.dedupe.candidates import Candidates
from curate.dedupe.star import Stars

HASHES = st.lists(
    st.sampled_from([0, 0b11, 0b1111, 0xFF, 0xF0F0 << 20, 0xF0F1 << 20]) | st.integers(0, 2**64 - 1), max_size=30
)


def by_definition(
    hashes: list[int], distance: int, further: set[tuple[int, int]], alike: set[tuple[int, int]]
) -> list[int]:
    """The keeper of each picture: the best one that stays, is near or a further candidate, and alike; else itself."""
    keeper: list[int] = []
    for worse, one in enumerate(hashes):
        near = [
            better
            for better in range(worse)
            if keeper[better] == better
            and ((one ^ hashes[better]).bit_count() <= distance or (better, worse) in further)
            and (better, worse) in alike
        ]
        keeper.append(near[0] if near else worse)
    return keeper


@settings(deadline=None)
@given(
    HASHES,
    st.integers(0, 8),
    st.sampled_from([0, 0.05, 0.5]),
    st.integers(0, 2**32),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([1, 5, 1000]),
)
def test_blocks_of_any_size_give_what_the_definition_says(hashes, distance, share, seed, block, most):
    chance = np.random.default_rng(seed)
    pictures = range(len(hashes))
    every = [(a, b) for b in pictures for a in range(b)]
    alike = {pair for pair in every if chance.random() < 0.7}
    further = {pair for pair in every if chance.random() < share}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "MOST_PAIRS", most)
        ranks = 10 * np.arange(len(hashes)) + 5
        also = ranks[np.array(sorted(further), np.int64).reshape(-1, 2)]
        found = Candidates(ranks, np.array(hashes, np.uint64), distance, also)
        place = {int(rank): node for node, rank in enumerate(ranks)}
        involved = [place[int(rank)] for rank in found.rank]

        def verify(pairs):
            return np.array([(involved[a], involved[b]) in alike for a, b in pairs.tolist()], bool)

        stars = Stars(len(involved), verify)
        for first, last, pairs in found.blocks(stars):
            assert len(pairs) == len(np.unique(pairs, axis=0))
            assert last - first <= block
            assert len(pairs) <= most or last - first == 1
            stars.decide(first, last, pairs)
    keeper = list(pictures)
    for node, best in zip(involved, stars.keeper.tolist(), strict=True):
        keeper[node] = involved[best]
    assert keeper == by_definition(hashes, distance, further, alike)
    assert [hashes[node] for node in involved] == found.phash.tolist()


def test_a_crowd_of_copies_costs_little():
    """Ten thousand copies of one picture are compared with their keeper, not with each other."""
    found = Candidates(np.arange(10_000), np.zeros(10_000, np.uint64), 4, np.empty((0, 2), np.int64))
    assert found.pairs_at_most() == 10_000 * 9_999 // 2
    compared = 0

    def verify(pairs):
        nonlocal compared
        compared += len(pairs)
        return np.ones(len(pairs), bool)

    stars = Stars(10_000, verify)
    for first, last, pairs in found.blocks(stars):
        stars.decide(first, last, pairs)
    assert compared == 9_999
    assert stars.kept().sum() == 1
