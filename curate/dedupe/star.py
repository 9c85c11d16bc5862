"""Star clusters: who stays in whose place.

Nodes are numbered by the keeper rule, 0 is the best of all. Candidates are pairs that may be duplicates; whether they
are is found out by a comparison, which costs something. The best node stays and takes all that are verified duplicates
of it, then the best of those left takes its own, and so on. So every dropped node has a verified edge to its keeper,
every keeper stays, and no two candidates that stay are duplicates. Nothing is dropped for being like something that was
itself dropped, as it would be in connected components; and a node is compared with keepers only, never with what is
dropped already.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]
"""(n, 2): nodes, the better one first."""

_OPEN, _KEPT, _DROPPED = 0, 1, 2


class Stars:
    """Decides about nodes 0 to `nodes` - 1, in blocks of consecutive ones."""

    def __init__(self, nodes: int, verify: Callable[[Pairs], NDArray[np.bool_]]) -> None:
        """`verify` says of each of many pairs whether the two are duplicates."""
        self._state = np.full(nodes, _OPEN, np.uint8)
        self._verify = verify
        self.keeper = np.arange(nodes)
        """Of each node that is decided: the one that stays in its place; itself, if it stays."""

    def kept(self) -> NDArray[np.bool_]:
        """Which nodes are decided to stay."""
        kept: NDArray[np.bool_] = self._state == _KEPT
        return kept

    def decide(self, first: int, last: int, candidates: Pairs) -> None:
        """Decide about the nodes from `first` up to `last`, exclusively.

        Every node before them is decided. `candidates` are all pairs of one of them and a better node that is
        not dropped.

        Each node asks its candidates from the best on, whenever the next one is known to stay, and all that can ask
        do so at once: few large batches instead of many small ones, with the outcome of one after the other.
        """
        order = np.lexsort((candidates[:, 0], candidates[:, 1]))
        better, worse = candidates[order].T
        nodes = np.arange(first, last)
        place = np.searchsorted(worse, nodes)  # Of the candidate that each node asks next.
        end = np.searchsorted(worse, nodes, side="right")
        while len(nodes):
            alone = place == end
            self._state[nodes[alone]] = _KEPT
            nodes, place, end = nodes[~alone], place[~alone], end[~alone]
            asked = self._state[better[place]]
            ready = np.flatnonzero(asked == _KEPT)
            pairs = np.stack([better[place[ready]], nodes[ready]], axis=1)
            same = self._verify(pairs) if len(pairs) else np.empty(0, bool)
            self._state[pairs[same, 1]] = _DROPPED
            self.keeper[pairs[same, 1]] = pairs[same, 0]
            place[asked == _DROPPED] += 1
            place[ready[~same]] += 1
            open_ = self._state[nodes] == _OPEN
            nodes, place, end = nodes[open_], place[open_], end[open_]


def stars(edges: Pairs, nodes: int) -> NDArray[np.int64]:
    """The keeper of each node, where the edges are verified already."""
    found = Stars(nodes, lambda pairs: np.ones(len(pairs), bool))
    found.decide(0, nodes, edges)
    return found.keeper
