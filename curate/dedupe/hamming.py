"""All pairs of 64-bit hashes within a Hamming distance, exactly, in time that grows little faster than their number.

Cut the bits into more blocks than `distance`. Two hashes that differ in at most `distance` bits agree in all but at
most `distance` blocks. So, for every choice of all but `distance` blocks: move the bits of the choice to the top (the
key), sort, and compare the hashes in each run of equal keys (Manku, Jain and Das Sarma, "Detecting near-duplicates for
web crawling", WWW 2007). More blocks mean more sorts and fewer comparisons; a model of the cost finds their number.

What always holds:

- A pair that agrees in many blocks meets in many choices. It counts in one, that of the first blocks in which it
  agrees.
- Hashes of real pictures crowd together. A run that is too long to be compared is searched like the whole, by the bits
  outside its key. Nothing is ever left out.
"""

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
Places = NDArray[np.int64]

CHUNK = 1 << 17
"""Hashes that are worked on at a time: they stay in the processor's cache."""

SAMPLE = 1 << 14
"""Pairs by which the cost of a search is estimated."""

MORE = 6
"""At most so many blocks more than the distance are tried: more of them never pay."""

LONG = 1 << 10
"""Longer runs of equal keys are searched by their other bits, where that costs less."""

SORT = 10.0
"""A hash is moved and sorted in the time of so many comparisons (measured)."""

HELD = 1 << 20
"""Pairs that a thread finds before it packs them."""


def pairs(hashes: Hashes, distance: int, threads: int | None = None) -> Pairs:
    """Indices (i < j) of every two of the distinct `hashes` that differ in at most `distance` (0..8) bits.

    Args:
        hashes: (n,), fewer than 2**32 and none twice. Ascending ones save a sort.
        distance: the most bits in which a pair differs.
        threads: as many as there are processors, unless given. Each holds a copy of the hashes.

    Returns:
        (pairs, 2), each pair once, sorted by (i, j), whatever the number of threads.

    Raises:
        ValueError: a hash occurs twice, or the distance is not 0 to 8.
    """
    if not 0 <= distance <= 8:
        raise ValueError(f"the distance is {distance}, but must be 0 to 8")
    search = _Search(hashes, distance)
    waiting, packed = search.explore(search.root())
    found = [packed]
    running: set[Future[tuple[list[_Choice], Hashes]]] = set()
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:  # NumPy lets go of the interpreter's lock.
        while waiting or running:
            while waiting and len(running) < workers:
                running.add(pool.submit(search.follow, waiting.pop()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                deeper, packed = future.result()
                waiting += deeper
                found.append(packed)
    return _unpacked(found)


@dataclass(frozen=True)
class _Group:
    """Hashes to be searched for pairs: those that agree in the key, and differ in each of some sets of bits."""

    hashes: Hashes
    """(n,) ascending, their bits in the order of `layout`."""
    layout: NDArray[np.int64]
    """(64,) which bit of the original hash lies at each place, from the top."""
    key: int
    """So many places from the top are the key."""
    apart: tuple[np.uint64, ...]
    """Masks of original bits. Pairs that agree in one of them have been found elsewhere."""

    @property
    def low(self) -> np.uint64:
        """Hashes with equal keys differ by this at most."""
        return np.uint64((1 << (64 - self.key)) - 1)

    def chunks(self) -> Iterator[Hashes]:
        """All hashes in pieces of `CHUNK` or a little fewer, but no run is cut."""
        start, total = 0, len(self.hashes)
        while start < total:
            end = min(start + CHUNK, total)
            if end < total:
                first = self.hashes[end] & ~self.low
                end = int(np.searchsorted(self.hashes, first))
                if end <= start:
                    end = int(np.searchsorted(self.hashes, first | self.low, side="right"))
            yield self.hashes[start:end]
            start = end

    def parted(self, chunk: Hashes) -> tuple[Hashes, Hashes]:
        """What lies in short runs, and what lies in long ones."""
        if not ((chunk[LONG:] ^ chunk[:-LONG]) <= self.low).any():
            return chunk, chunk[:0]
        lengths = self.runs(chunk)
        long = np.repeat(lengths > LONG, lengths)
        return chunk[~long], chunk[long]

    def runs(self, hashes: Hashes) -> NDArray[np.int64]:
        """The lengths of the runs of equal keys."""
        starts = np.flatnonzero((hashes[1:] ^ hashes[:-1]) > self.low) + 1
        return np.diff(starts, prepend=0, append=len(hashes))

    def choices(self, distance: int) -> list["_Choice"]:
        """The searches that together find all pairs; none if it costs less to compare all."""
        lengths = self.runs(self.hashes)
        crowd = float((lengths / max(len(self.hashes), 1)) @ lengths) / 2
        blocks = _blocks(np.arange(self.key, 64), distance, self._sample(lengths), crowd)
        if not blocks:
            return []
        return [self._choice(blocks, chosen) for chosen in combinations(range(len(blocks)), len(blocks) - distance)]

    def _sample(self, lengths: NDArray[np.int64]) -> Hashes:
        """In which bits some pairs of hashes with equal keys differ; `lengths` are those of the runs."""
        chance = np.random.default_rng(0)
        ends = np.cumsum(lengths)
        first = chance.integers(len(self.hashes), size=min(SAMPLE, len(self.hashes)))
        run = np.searchsorted(ends, first, side="right")
        second = ends[run] - 1 - chance.integers(lengths[run])
        differ: Hashes = self.hashes[first] ^ self.hashes[second]
        return differ[differ > 0]

    def _choice(self, blocks: list[NDArray[np.int64]], chosen: tuple[int, ...]) -> "_Choice":
        top = np.concatenate([np.arange(self.key), *(blocks[block] for block in chosen)])
        rest = np.setdiff1d(np.arange(64), top)
        before = [blocks[block] for block in range(chosen[-1]) if block not in chosen]
        apart = tuple(_mask(self.layout[block]) for block in before)
        return _Choice(self, self.layout[np.concatenate([top, rest])], len(top), self.apart + apart)


@dataclass(frozen=True)
class _Choice:
    """A search of a group by a longer key, still to be made."""

    group: _Group
    layout: NDArray[np.int64]
    key: int
    apart: tuple[np.uint64, ...]

    def sort(self) -> _Group:
        """The group as it is to be searched."""
        source = self.group.hashes
        moves = _moves(self.group.layout, self.layout)
        hashes = np.empty_like(source)
        for start in range(0, len(source), CHUNK):
            hashes[start : start + CHUNK] = _moved(source[start : start + CHUNK], moves)
        hashes.sort()
        return _Group(hashes, self.layout, self.key, self.apart)


class _Search:
    """What is searched for, and where the hashes stand in the input."""

    def __init__(self, hashes: Hashes, distance: int) -> None:
        self.distance = distance
        self._hashes = hashes
        self._index: NDArray[np.int64] | None = None
        if not (hashes[1:] > hashes[:-1]).all():
            self._index = np.argsort(hashes)
            self._hashes = hashes[self._index]
            if (self._hashes[1:] == self._hashes[:-1]).any():
                raise ValueError("a hash occurs twice, but pairs are of distinct hashes")

    def root(self) -> _Group:
        """All hashes."""
        return _Group(self._hashes, _STRAIGHT, 0, ())

    def follow(self, choice: _Choice) -> tuple[list[_Choice], Hashes]:
        """Explore the group of a choice."""
        return self.explore(choice.sort())

    def explore(self, group: _Group) -> tuple[list[_Choice], Hashes]:
        """The choices that lead to the pairs in the long runs of a group; the pairs in all other runs, packed."""
        found = _Found(self, group)
        crowds = [np.empty(0, np.uint64)]
        for chunk in group.chunks():
            short, long = group.parted(chunk)
            found.compare(short)
            crowds.append(long)
        crowd = replace(group, hashes=np.concatenate(crowds))
        choices = crowd.choices(self.distance)
        if not choices:
            for chunk in crowd.chunks():
                found.compare(chunk)
        return choices, found.packed()

    def pack(self, left: Hashes, right: Hashes) -> Hashes:
        """Pairs of hashes as numbers: the first index in the upper half, the second in the lower."""
        hashes = np.concatenate([left, right])
        order = np.argsort(hashes)  # Ascending needles are found many times as fast.
        index = np.empty(len(hashes), np.int64)
        index[order] = np.searchsorted(self._hashes, hashes[order])
        if self._index is not None:
            index = self._index[index]
        a, b = index.astype(np.uint64).reshape(2, -1)
        return np.minimum(a, b) << _HALF | np.maximum(a, b)


class _Found:
    """The pairs found in a group."""

    def __init__(self, search: _Search, group: _Group) -> None:
        self._search = search
        self._group = group
        self._straight = _moves(group.layout, _STRAIGHT)
        self._held: list[tuple[Hashes, Hashes]] = []
        self._many = 0
        self._packed = [np.empty(0, np.uint64)]

    def compare(self, chunk: Hashes) -> None:
        """Compare each hash with the next one, then with the next but one, and so on to the end of its run."""
        left = right = chunk
        differ, bits = np.empty_like(chunk), np.empty(len(chunk), np.uint8)
        offset, shrink = 0, 2
        while len(left) > 1:
            left, right, offset = left[:-1], right[1:], offset + 1
            np.bitwise_xor(left, right, out=differ[: len(left)])
            np.bitwise_count(differ[: len(left)], out=bits[: len(left)])
            close = np.flatnonzero(bits[: len(left)] <= self._search.distance)
            if len(close):
                self._hold(left[close], right[close])
            if offset == shrink:
                # Those of other runs were compared as well: it costs less than to leave them out each time.
                same = differ[: len(left)] <= self._group.low
                left, right = left[same], right[same]
                shrink += 1 + shrink // 2

    def _hold(self, left: Hashes, right: Hashes) -> None:
        same = (left ^ right) <= self._group.low
        self._held.append((left[same], right[same]))
        self._many += int(np.count_nonzero(same))
        if self._many > HELD:
            self._pack()

    def _pack(self) -> None:
        """Pack what is held, without the pairs that are found elsewhere."""
        if not self._held:
            return
        left, right = (_moved(np.concatenate(side), self._straight) for side in zip(*self._held, strict=True))
        self._held.clear()
        self._many = 0
        here = np.ones(len(left), bool)
        for mask in self._group.apart:
            here &= (left ^ right) & mask != 0
        self._packed.append(self._search.pack(left[here], right[here]))

    def packed(self) -> Hashes:
        """All pairs, packed."""
        self._pack()
        return np.concatenate(self._packed)


def _blocks(places: Places, distance: int, differ: Hashes, crowd: float) -> list[Places]:
    """The places cut into as many blocks as cost least; none if it costs less to compare all.

    `differ` shows in which bits pairs differ, by a sample of them; `crowd` is how many pairs there are for each hash.
    """
    if not len(differ):
        return []
    rate = ((differ[:, None] >> (63 - places).astype(np.uint64)) & np.uint64(1)).mean(axis=0)
    entropy = -np.log2(1 - rate.clip(1e-3, 0.5))  # Of collision: how many bits each bit is worth as a key.
    up_to = np.cumsum(entropy)

    def cut(count: int) -> list[Places]:
        """Blocks of equal entropy."""
        ends = up_to[-1] * np.arange(1, count) / count
        return np.split(places, np.searchsorted(up_to - entropy / 2, ends))

    def cost(blocks: list[Places]) -> float:
        """In comparisons for each hash."""
        chosen = len(blocks) - distance
        choices = comb(len(blocks), distance)
        agree = sum((differ & _mask(63 - block)) == 0 for block in blocks)
        meet = float(np.array([comb(count, chosen) for count in range(len(blocks) + 1)])[agree].mean())
        by_chance = choices / 2 ** (float(up_to[-1]) * chosen / len(blocks))  # Rarer than the sample can show.
        return choices * SORT + crowd * max(meet, by_chance)

    most = min(len(places), distance + MORE)
    best = min(map(cut, range(distance + 1, most + 1)), key=cost, default=[])
    return best if best and cost(best) < crowd / 2 else []


def _mask(bits: Places) -> np.uint64:
    return np.uint64(sum(1 << bit for bit in bits.tolist()))


_STRAIGHT = np.arange(63, -1, -1)
"""The layout of a hash as it is given."""

_HALF = np.uint64(32)


def _moves(source: NDArray[np.int64], target: NDArray[np.int64]) -> list[tuple[int, np.uint64]]:
    """How to bring hashes from one layout to another: how far up, and the mask of the bits that go there."""
    place = np.empty(64, np.int64)
    place[target] = np.arange(64)
    masks: dict[int, int] = {}
    for at, up in enumerate((np.arange(64) - place[source]).tolist()):
        masks[up] = masks.get(up, 0) | 1 << (63 - at)
    return [(up, np.uint64(mask)) for up, mask in masks.items()]


def _moved(hashes: Hashes, moves: list[tuple[int, np.uint64]]) -> Hashes:
    moved = np.zeros_like(hashes)
    for up, mask in moves:
        part = hashes & mask
        moved |= part << np.uint64(up) if up >= 0 else part >> np.uint64(-up)
    return moved


def _unpacked(packed: list[Hashes]) -> Pairs:
    """The sorted pairs."""
    both = np.concatenate(packed)
    both.sort()
    unpacked = np.empty((len(both), 2), np.int64)
    unpacked[:, 0] = both >> _HALF
    unpacked[:, 1] = both & np.uint64((1 << 32) - 1)
    return unpacked
