"""Stars, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from curate.dedupe.star import stars

EDGES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda e: e[0] < e[1]), max_size=40)


def by_definition(nodes: set[int], edges: list[tuple[int, int]]) -> dict[int, int]:
    """The best of those left takes its neighbours, until nobody is left."""
    left, taken = set(nodes), {}
    while left:
        best = min(left)
        neighbours = {b if a == best else a for a, b in edges if best in (a, b)} & left
        taken |= dict.fromkeys(neighbours, best)
        left -= neighbours | {best}
    return taken


@given(EDGES)
def test_stars_are_what_the_definition_says(edges):
    assert stars(edges) == by_definition({node for edge in edges for node in edge}, edges)


@given(EDGES)
def test_every_dropped_node_has_an_edge_to_a_keeper_that_stays(edges):
    found = stars(edges)
    for dropped, keeper in found.items():
        assert (keeper, dropped) in edges
        assert keeper not in found
    assert not [edge for edge in edges if edge[0] not in found and edge[1] not in found]


@given(EDGES, st.randoms())
def test_the_order_of_edges_does_not_matter(edges, random):
    shuffled = random.sample(edges, len(edges))
    assert stars(shuffled) == stars(edges)
