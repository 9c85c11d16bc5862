"""Small directed graphs of names: what follows from what."""

from collections.abc import Mapping
from graphlib import TopologicalSorter

Graph = Mapping[str, frozenset[str]]
"""Names that follow from each name directly."""


def cycles(graph: Graph) -> set[tuple[str, str]]:
    """The edges that lie on a cycle, those from a name to itself among them."""
    core = graph
    while (inner := _inner(core)) != core:  # What leads nowhere lies on no cycle.
        core = inner
    return {(name, target) for name, targets in core.items() for target in targets if name in _reached(core, target)}


def without(graph: Graph, edges: set[tuple[str, str]]) -> Graph:
    """The graph without some edges."""
    return {
        name: frozenset(target for target in targets if (name, target) not in edges) for name, targets in graph.items()
    }


def closure(graph: Graph) -> dict[str, frozenset[str]]:
    """All names that follow from each name. Raises graphlib.CycleError where the graph has a cycle."""
    found: dict[str, frozenset[str]] = {}
    for name in TopologicalSorter(graph).static_order():  # Targets come first.
        direct = graph.get(name, frozenset())
        found[name] = direct.union(*(found[target] for target in direct))
    return found


def _inner(graph: Graph) -> Graph:
    return {name: kept for name, targets in graph.items() if (kept := targets & graph.keys())}


def _reached(graph: Graph, start: str) -> set[str]:
    """The names that a name leads to, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        new = graph.get(waiting.pop(), frozenset()) - found
        found |= new
        waiting += new
    return found
