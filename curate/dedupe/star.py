"""Star clusters: who stays in whose place."""

from collections.abc import Iterable


def stars(edges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Which node takes the place of which: {dropped: keeper}.

    Nodes are ranks, smaller is better; an edge (better, worse) says that the two are duplicates. The best node
    takes all its neighbours, then the best of those left takes its own, and so on. So every dropped node has an
    edge to its keeper, every keeper stays, and no two nodes that stay have an edge. Nothing is dropped for being
    like something that was itself dropped, as it would be in connected components.
    """
    keepers: dict[int, int] = {}
    for better, worse in sorted(edges):
        if better not in keepers:
            keepers.setdefault(worse, better)
    return keepers
