"""Stars, against the definition."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.dedupe.star import Stars, stars

NODES = 13
EDGES = st.lists(
    st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)).filter(lambda e: e[0] < e[1]), max_size=40
)


def array(edges: list[tuple[int, int]]) -> np.ndarray:
    return np.array(edges, np.int64).reshape(-1, 2)


def by_definition(edges: list[tuple[int, int]]) -> list[int]:
    """The best of those left takes its neighbours, until nobody is left."""
    left, keeper = set(range(NODES)), list(range(NODES))
    while left:
        best = min(left)
        neighbours = {b if a == best else a for a, b in edges if best in (a, b)} & left
        for node in neighbours:
            keeper[node] = best
        left -= neighbours | {best}
    return keeper


@given(EDGES)
def test_stars_are_what_the_definition_says(edges):
    assert stars(array(sorted(set(edges))), NODES).tolist() == by_definition(edges)


@given(EDGES, st.data())
def test_only_candidates_that_are_verified_count_and_only_keepers_are_asked(candidates, data):
    candidates = sorted(set(candidates))
    edges = set(data.draw(st.lists(st.sampled_from(candidates), unique=True))) if candidates else set()
    asked: list[tuple[int, int]] = []

    def verify(pairs):
        asked.extend(map(tuple, pairs.tolist()))
        return np.array([tuple(pair) in edges for pair in pairs.tolist()], bool)

    found = Stars(NODES, verify)
    found.decide(0, NODES, array(candidates))
    assert found.keeper.tolist() == by_definition(sorted(edges))
    assert len(asked) == len(set(asked))
    kept = np.flatnonzero(found.kept()).tolist()
    assert kept == [node for node in range(NODES) if found.keeper[node] == node]
    assert {better for better, _ in asked} <= set(kept)
    # Whatever stays was compared with every better candidate that stays.
    assert {pair for pair in candidates if set(pair) <= set(kept)} <= set(asked)


@given(EDGES, st.lists(st.integers(1, NODES), max_size=4))
def test_the_cut_into_blocks_does_not_matter(edges, cuts):
    bounds = sorted({0, NODES, *cuts})
    found = Stars(NODES, lambda pairs: np.ones(len(pairs), bool))
    for first, last in pairwise(bounds):
        dropped = set(np.flatnonzero(~found.kept()[:first]).tolist())
        block = [edge for edge in set(edges) if first <= edge[1] < last and edge[0] not in dropped]
        found.decide(first, last, array(block))
    assert found.keeper.tolist() == by_definition(edges)
