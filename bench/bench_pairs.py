"""All pairs of 64-bit hashes that differ in at most 4 bits: ours, faiss, DuckDB and imagededup.

    python bench/bench_pairs.py [--seed 1]
    python bench/bench_pairs.py --growth [--plot docs/pairs.png]

The hashes are random and distinct, in random order. One in twenty is a copy of another one, in which 1 to 4 random
bits are flipped; no hash has two copies. Each method gets as many as it can search in about three minutes, ours the
same ones. The settings of faiss and DuckDB are those of full recall.

A measurement is a process of its own that may use all cores. Its time is that of the search, indexing included; its
core-seconds are those of its threads and processes, which other work on the machine changes little; its memory is the
most it ever held (imagededup: without its processes). Recall is of the pairs that either of the two found. Ours is
checked by brute force and by the copies.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
P = ParamSpec("P")
T = TypeVar("T")

DISTANCE = 4
CHECKED = 50_000
"""So many hashes are compared by brute force."""

GROWTH = (1_000_000, 10_000_000, 50_000_000)
PLOT = Path(__file__).parent.parent / "docs" / "pairs.png"


@dataclass(frozen=True)
class Measured:
    """What a search took and found."""

    seconds: float
    cores: float
    """Seconds of all cores together: other work on the machine changes them little."""
    gigabytes: float
    pairs: Pairs


def main() -> None:
    """Measure each of the others beside ours, or how ours grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth", action="store_true", help="ours alone, by the number of hashes")
    parser.add_argument("--plot", type=Path, default=PLOT, help="where the picture of the growth goes")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, distance {DISTANCE}, seed {options.seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder), options.seed)
        if options.growth:
            growth(corpus, options.plot)
        else:
            compare(corpus)


class Corpus:
    """Hashes of any number, on disk, so that the processes that search them never held more."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed

    def hashes(self, count: int) -> Path:
        """The file of so many hashes."""
        return self._made(count) / "hashes.npy"

    def copies(self, count: int) -> Pairs:
        """Hashes and their copies, (pairs, 2), sorted."""
        pairs: Pairs = np.load(self._made(count) / "copies.npy")
        return pairs

    def _made(self, count: int) -> Path:
        folder = self._folder / str(count)
        if not folder.exists():
            folder.mkdir()
            alone(make, folder, count, self._seed)
        return folder


def make(folder: Path, count: int, seed: int) -> None:
    """Draw the hashes."""
    random = np.random.default_rng(seed)
    copied = count // 20
    originals = random.integers(0, 2**64, count - copied, dtype=np.uint64)
    assert len(np.unique(originals)) == len(originals), "take another seed"
    flips = np.uint64(1) << random.integers(0, 64, (copied, DISTANCE), dtype=np.uint64)
    flips[np.arange(DISTANCE) >= random.integers(1, DISTANCE + 1, copied)[:, None]] = 0
    copies = originals[:copied] ^ np.bitwise_or.reduce(flips, axis=1)
    place = random.permutation(count)
    hashes = np.empty(count, np.uint64)
    hashes[place] = np.concatenate([originals, copies])
    np.save(folder / "hashes.npy", hashes)
    np.save(folder / "copies.npy", ordered(np.stack([place[:copied], place[-copied:]], axis=1)))


def compare(corpus: Corpus) -> None:
    """Each of the others beside ours."""
    found, expected = (alone(measured, search, corpus.hashes(CHECKED)).pairs for search in (ours, brute_force))
    print(f"{CHECKED:,} hashes: {len(found):,} pairs by ours, {len(expected):,} by brute force, ", end="")
    print(f"{common(found, expected):,} the same\n")
    print(f"{'':45}{'hashes':>10}{'seconds':>9}{'times':>7}{'cores':>9}{'GB':>7}{'times':>7}{'pairs':>10}  recall")
    for name, search, count in OTHERS:
        us, them = (alone(measured, one, corpus.hashes(count)) for one in (ours, search))
        copies = corpus.copies(count)
        if common(us.pairs, copies) < len(copies):
            sys.exit(f"ours found {common(us.pairs, copies):,} of {len(copies):,} copies")
        either = len(us.pairs) + len(them.pairs) - common(us.pairs, them.pairs)
        for who, one in (("ours", us), (name, them)):
            time_and_ratio = f"{one.seconds:9.2f}{one.seconds / us.seconds:7.1f}{one.cores:9.2f}"
            memory_and_ratio = f"{one.gigabytes:7.2f}{one.gigabytes / us.gigabytes:7.1f}"
            recall = f"{len(one.pairs):10,}  {len(one.pairs) / either:.6f}"
            print(f"{who:45}{count:10,}{time_and_ratio}{memory_and_ratio}{recall}", flush=True)


def growth(corpus: Corpus, plot: Path) -> None:
    """Ours on more and more hashes: a table and a picture."""
    print("| hashes | seconds | core-seconds | memory, GB | pairs | copies found |\n|---|---|---|---|---|---|")
    seconds = []
    for count in GROWTH:
        result, copies = alone(measured, ours, corpus.hashes(count)), corpus.copies(count)
        seconds.append(result.seconds)
        print(
            f"| {count:,} | {result.seconds:.1f} | {result.cores:.1f} | {result.gigabytes:.2f} "
            f"| {len(result.pairs):,} | {common(result.pairs, copies):,} of {len(copies):,} |",
            flush=True,
        )
    draw(np.array(GROWTH), np.array(seconds), plot)


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def measured(search: Callable[[Hashes], Callable[[], Pairs]], path: Path) -> Measured:
    """Time and memory of a search in this process."""
    run = search(np.load(path))
    start, before = time.perf_counter(), core_seconds()
    pairs = run()
    seconds, cores = time.perf_counter() - start, core_seconds() - before
    return Measured(seconds, cores, peak(), ordered(pairs))


def core_seconds() -> float:
    """What this process and its ended children computed."""
    return sum(os.times()[:4])


def peak() -> float:
    """GB: the most that this process held. (`ru_maxrss` would count what its parent held at the start.)"""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e9


def ours(hashes: Hashes) -> Callable[[], Pairs]:
    """`curate.dedupe.hamming`."""
    from curate.dedupe.hamming import pairs

    return lambda: pairs(hashes, DISTANCE)


def brute_force(hashes: Hashes) -> Callable[[], Pairs]:
    """Every two compared."""

    def run() -> Pairs:
        found = []
        for start in range(0, len(hashes), 16):
            one, other = np.nonzero(np.bitwise_count(hashes[start : start + 16, None] ^ hashes) <= DISTANCE)
            found.append(np.stack([one + start, other], axis=1))
        return np.concatenate(found)

    return run


def by_faiss(hashes: Hashes) -> Callable[[], Pairs]:
    """Of 3 x 21 bits, one agrees in all but one: its neighbours at one flip are looked up. Fastest of full recall."""
    import faiss

    def run() -> Pairs:
        index = faiss.IndexBinaryMultiHash(64, 3, 21)
        index.nflip = 1
        codes = hashes.view(np.uint8).reshape(-1, 8)
        index.add(codes)
        ends, _, other = index.range_search(codes, DISTANCE + 1)  # Below the radius.
        found = ends[1:] - ends[:-1]
        return np.stack([np.repeat(np.arange(len(hashes)), found.astype(np.int64)), other], axis=1)

    return run


def by_duckdb(hashes: Hashes) -> Callable[[], Pairs]:
    """Of five bands, four of 13 bits and one of 12, one agrees: a join by each."""
    import duckdb
    import pyarrow as pa

    table = pa.table({"place": np.arange(len(hashes)), "hash": hashes})
    query = " UNION ".join(
        f"""SELECT a.place AS a, b.place AS b FROM hashes a JOIN hashes b
        ON (a.hash >> {shift}) & 8191 = (b.hash >> {shift}) & 8191
        AND a.place < b.place AND bit_count(xor(a.hash, b.hash)) <= {DISTANCE}"""
        for shift in (0, 13, 26, 39, 52)
    )

    def run() -> Pairs:
        with duckdb.connect() as connection:
            connection.register("given", table)
            connection.execute("CREATE TABLE hashes AS FROM given")
            columns = connection.execute(query).fetchnumpy()
        return np.stack([columns["a"], columns["b"]], axis=1)

    return run


def by_imagededup(hashes: Hashes) -> Callable[[], Pairs]:
    """The search that imagededup takes by default."""
    from imagededup.methods import PHash

    set_start_method("fork", force=True)  # Of its processes: as in a program that was not spawned.
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    names = [str(place) for place in range(len(hashes))]
    encodings = dict(zip(names, (f"{one:016x}" for one in hashes.tolist()), strict=True))

    def run() -> Pairs:
        found = PHash(verbose=False).find_duplicates(
            encoding_map=encodings, max_distance_threshold=DISTANCE, num_dist_workers=os.cpu_count() or 1
        )
        return np.array([(int(a), int(b)) for a, others in found.items() for b in others], np.int64).reshape(-1, 2)

    return run


OTHERS = (
    ("faiss IndexBinaryMultiHash, 3 x 21, nflip 1", by_faiss, 2_000_000),
    ("DuckDB, 5 joins by bands of 13 bits", by_duckdb, 3_000_000),
    ("imagededup, brute_force_cython", by_imagededup, 20_000),
)


def ordered(pairs: Pairs) -> Pairs:
    """Each pair once, the smaller index first, ascending; none of an index and itself."""
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    packed = np.unique((low << 32 | high)[low < high])
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)


def common(one: Pairs, other: Pairs) -> int:
    """How many pairs are in both."""
    a, b = (pairs[:, 0] << 32 | pairs[:, 1] for pairs in (one, other))
    return len(np.intersect1d(a, b, assume_unique=True))


def draw(counts: NDArray[np.int64], seconds: NDArray[np.float64], path: Path) -> None:
    """Time by the number of hashes, beside growth in proportion to it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.loglog(counts, seconds[0] * counts / counts[0], "--", color="0.55", label="in proportion to the first")
    axes.loglog(counts, seconds, "o-", color="tab:blue", linewidth=2, markersize=7, label="measured")
    for count, second in zip(counts, seconds, strict=True):
        axes.annotate(f"{second:.1f} s", (count, second), (-16, 10), textcoords="offset points", ha="center")
    axes.set_xticks(counts, [f"{count / 1e6:,.0f}" for count in counts])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(0.12, 0.12)
    axes.minorticks_off()
    axes.set_xlabel("hashes, millions")
    axes.set_ylabel("time, seconds")
    axes.set_title(f"All pairs within {DISTANCE} bits, {os.cpu_count()} cores", fontsize=13)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
