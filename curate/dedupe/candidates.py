"""Which pictures may be duplicates: those whose perceptual hashes differ in few bits, and those found in other ways.

Pictures with equal hashes are one in the search, and are told apart again behind it. A hash that thousands share would
give millions of pairs, so pairs are made for a block of pictures at a time, and only with those not dropped by then.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.dedupe import hamming
from curate.dedupe.star import Pairs, Stars

BLOCK = 1 << 20
"""Pictures that are decided about at a time..."""

MOST_PAIRS = 1 << 24
"""...or fewer, so that there are no more pairs than this in memory."""


class Candidates:
    """The pictures that have candidates, numbered in the order of the keeper rule."""

    rank: NDArray[np.int64]
    """(n,) of each: its rank among all pictures."""
    phash: NDArray[np.uint64]

    def __init__(self, rank: NDArray[np.int64], phash: NDArray[np.uint64], distance: int, further: Pairs) -> None:
        """Of all pictures: their ranks, ascending, and their hashes. `further` are candidates in any case, by rank."""
        hashes, group, members = np.unique(phash, return_inverse=True, return_counts=True)
        near = hamming.pairs(hashes, distance)
        involved = members > 1
        involved[near.ravel()] = True
        further = np.searchsorted(rank, further)
        further = further[np.bitwise_count(np.bitwise_xor(*phash[further].T)) > distance]  # The others are near.
        involved[group[further].ravel()] = True
        chosen = np.flatnonzero(involved[group])
        self.rank, self.phash = rank[chosen], phash[chosen]
        self._group = group[chosen].astype(np.int64)
        further = np.searchsorted(chosen, further)
        self._further = further[np.argsort(further[:, 1])]
        # The neighbours of each group of equal hashes, itself included, one group's after the other's.
        own = np.flatnonzero(involved)
        source = np.concatenate([near[:, 0], near[:, 1], own])
        order = np.argsort(source, kind="stable")
        self._neighbours = np.concatenate([near[:, 1], near[:, 0], own])[order]
        self._first = np.searchsorted(source[order], np.arange(len(hashes) + 1))

    def blocks(self, found: Stars) -> Iterator[tuple[int, int, Pairs]]:
        """(first, last, candidates) for `Stars.decide`, a block of pictures at a time until all are decided."""
        nodes, first = len(self.rank), 0
        while first < nodes:
            last = min(first + BLOCK, nodes)
            while (spans := self._spans(first, last, found)).total > MOST_PAIRS and last - first > 1:
                last = first + (last - first) // 2
            yield first, last, spans.pairs()
            first = last

    def pairs_at_most(self) -> int:
        """How many candidate pairs there are, if no picture is dropped."""
        return self._spans(0, len(self.rank), None).total

    def _spans(self, first: int, last: int, found: Stars | None) -> "_Spans":
        """For pictures `first` to `last`: where in the pool of possible keepers their better neighbours lie."""
        block = np.arange(first, last)
        before = np.empty(0, np.int64) if found is None else np.flatnonzero(found.kept()[:first])
        pool = np.concatenate([before, block])
        key = self._group[pool] * len(self.rank) + pool
        order = np.argsort(key)
        key, pool = key[order], pool[order]
        groups = self._group[block]
        count = self._first[groups + 1] - self._first[groups]
        worse = np.repeat(block, count)
        neighbours = self._neighbours[_ranges(self._first[groups], count)]
        low = np.searchsorted(key, neighbours * len(self.rank))
        high = np.searchsorted(key, neighbours * len(self.rank) + worse)
        return _Spans(pool, worse, low, high - low, self._further_in(first, last, found))

    def _further_in(self, first: int, last: int, found: Stars | None) -> Pairs:
        """The further candidates of pictures `first` to `last` that may be their keepers."""
        start, end = np.searchsorted(self._further[:, 1], (first, last))
        pairs = self._further[start:end]
        return pairs if found is None else pairs[(pairs[:, 0] >= first) | found.kept()[pairs[:, 0]]]


@dataclass(frozen=True)
class _Spans:
    """Candidates of the pictures `worse`: `count` consecutive ones of `pool` each, from `low` on; and further pairs."""

    pool: NDArray[np.int64]
    worse: NDArray[np.int64]
    low: NDArray[np.int64]
    count: NDArray[np.int64]
    further: Pairs

    @property
    def total(self) -> int:
        return int(self.count.sum()) + len(self.further)

    def pairs(self) -> Pairs:
        better = self.pool[_ranges(self.low, self.count)]
        pairs = np.stack([better, np.repeat(self.worse, self.count)], axis=1)
        return np.concatenate([pairs, self.further])


def _ranges(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """first[0], first[0] + 1, ... (count[0] numbers), first[1], first[1] + 1, ... and so on."""
    ends = np.cumsum(count)
    places: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - count), count)
    return places
