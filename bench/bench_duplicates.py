"""Near duplicates in a corpus whose duplicates are known: our decision against perceptual hashes alone.

    python bench/bench_duplicates.py [--families 1000] [--seed 1] [--workers 2]

Ours: hashes within a distance propose, `curate.dedupe.verify` decides, the better picture of a star stays. The others:
imagehash's phash with the same stars and no verification, and imagededup's PHash with its own search and selection at
its default threshold. All see the same pictures in the same order of preference: more pixels, then more bytes.

A drop is right when a picture with the same content stays. Precision: right drops of all drops. Recall: right drops of
all that can be dropped (files less contents). Lost: contents of which no file stays. By kind: of copies, the share that
does not stay beside its base; of variants and bases, the share whose content is lost.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType

import imagehash
import numpy as np
from imagededup.methods import PHash
from numpy.typing import NDArray
from planted import COPIES, Planted, family, real_pictures

from curate.dedupe.descriptor import SIZE, describe
from curate.dedupe.star import stars
from curate.dedupe.verify import DUPLICATE, UNRELATED, VARIANT, compare
from curate.measure import read
from shared.images import MAX_PIXELS, decode

Pairs = NDArray[np.int64]
OURS = (4, 6, 8)
BATCH = 512


@dataclass(frozen=True)
class Corpus:
    """All pictures, the best first."""

    family: NDArray[np.int64]
    content: NDArray[np.int64]
    """A number per content, over all families."""
    kind: NDArray[np.str_]
    source: NDArray[np.str_]
    size: NDArray[np.int32]
    descriptor: NDArray[np.uint8]
    ours: NDArray[np.uint64]
    imagehash: NDArray[np.uint64]
    imagededup: list[str]

    def base(self) -> NDArray[np.int64]:
        """Of each picture: the base of its family."""
        bases = np.flatnonzero(self.kind == "base")
        place = np.empty(self.family.max() + 1, np.int64)
        place[self.family[bases]] = bases
        return place[self.family]


def main() -> None:
    """Make the corpus, let every method drop pictures, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with Pool(options.workers) as pool:
        corpus = make(pool, options.seed, options.families)
        print(f"{len(corpus.kind):,} files, {len(np.unique(corpus.content)):,} contents, seed {options.seed}\n")
        kept = {}
        for distance in OURS:
            edges, report = verified(pool, corpus, near(corpus.ours, distance))
            kept[f"ours, {distance} bits"] = stay(corpus, edges)
            print(f"{distance} bits: {report}")
        for distance in (4, 10):
            kept[f"imagehash, {distance} bits"] = stay(corpus, near(corpus.imagehash, distance))
        kept["imagededup"] = imagededup(corpus)
    print()
    for name, keep in kept.items():
        print(f"{name:20} {summary(corpus, keep)}")
    print("\n" + " " * 22 + "".join(f"{name.replace(' bits', ''):>15}" for name in kept))
    for kind in sorted(set(corpus.kind.tolist()), key=lambda kind: (kind not in COPIES, kind)):
        shares = "".join(f"{by_kind(corpus, keep, kind):15.3f}" for keep in kept.values())
        print(f"{kind:14} {(corpus.kind == kind).sum():6} {shares}")


def make(pool: PoolType, seed: int, count: int) -> Corpus:
    """Draw and measure everything."""
    rows = [row for found in pool.imap(partial(measured, seed), range(count), 4) for row in found]
    rows.sort(key=lambda row: (-row[1][0] * row[1][1], -len(row[0].data), row[0].family, row[0].kind))
    truth, sizes, descriptors, ours, theirs, dedup = zip(*rows, strict=True)
    return Corpus(
        family=np.array([file.family for file in truth]),
        content=np.array([file.family * 100 + file.content for file in truth]),
        kind=np.array([file.kind for file in truth]),
        source=np.array([file.source for file in truth]),
        size=np.array(sizes, np.int32),
        descriptor=np.frombuffer(b"".join(descriptors), np.uint8).reshape(-1, SIZE),
        ours=np.array(ours, np.uint64),
        imagehash=np.array(theirs, np.uint64),
        imagededup=list(dedup),
    )


def measured(seed: int, number: int) -> list[tuple[Planted, tuple[int, int], bytes, int, int, str]]:
    """A family, and of each file: size, descriptor, our hash, and those of the others on the whole picture."""
    return [(file, *hashes(file.data)) for file in family(seed, number, real_pictures())]


def hashes(data: bytes) -> tuple[tuple[int, int], bytes, int, int, str]:
    """Size, descriptor and the three hashes of a file."""
    picture, working, measures = read(data, MAX_PIXELS)
    whole = decode(data).image
    theirs = int(str(imagehash.phash(whole)), 16)
    dedup = PHash(verbose=False).encode_image(image_array=np.asarray(whole))
    return picture.size, describe(working), measures.phash, theirs, dedup


def near(values: NDArray[np.uint64], distance: int) -> Pairs:
    """All pairs of hashes within a distance, the better one first, by brute force."""
    found = []
    for start in range(0, len(values), 256):
        bits = np.bitwise_count(values[start : start + 256, None] ^ values)
        better, worse = np.nonzero(bits <= distance)
        found.append(np.stack([better + start, worse], axis=1)[better + start < worse])
    return np.concatenate(found)


def verified(pool: PoolType, corpus: Corpus, pairs: Pairs) -> tuple[Pairs, str]:
    """The pairs that are duplicates by comparison, and what was right and wrong about that."""
    start = time.perf_counter()
    kind = np.concatenate(pool.map(kinds, batches(corpus, pairs), 1))
    speed = len(pairs) / (time.perf_counter() - start)
    a, b = pairs.T
    same_family = corpus.family[a] == corpus.family[b]
    truth = np.where(corpus.content[a] == corpus.content[b], DUPLICATE, np.where(same_family, VARIANT, UNRELATED))
    parts = [
        f"{name} {np.mean(kind[truth == value] == DUPLICATE):.4f} of {(truth == value).sum():,}"
        for name, value in (("copies", DUPLICATE), ("variants", VARIANT), ("unrelated", UNRELATED))
        if (truth == value).any()
    ]
    report = f"called duplicates: {', '.join(parts)}; {speed:,.0f} pairs/s in {pool._processes} processes"  # type: ignore[attr-defined]
    return pairs[kind == DUPLICATE], report


Batch = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]


def batches(corpus: Corpus, pairs: Pairs) -> Iterator[Batch]:
    """What `compare` takes, for BATCH pairs at a time."""
    for start in range(0, len(pairs), BATCH):
        a, b = pairs[start : start + BATCH].T
        yield corpus.descriptor[a], corpus.descriptor[b], corpus.size[a], corpus.size[b]


def kinds(batch: Batch) -> NDArray[np.uint8]:
    """Kinds of some pairs, in another process."""
    return compare(*batch).kind


def stay(corpus: Corpus, edges: Pairs) -> NDArray[np.bool_]:
    """Which pictures stay when the better of two takes the place of the worse, in stars."""
    keeper = stars(edges, len(corpus.kind))
    return np.equal(keeper, np.arange(len(keeper)))


def imagededup(corpus: Corpus) -> NDArray[np.bool_]:
    """Which pictures stay after imagededup's own selection."""
    names = [f"{place:07}" for place in range(len(corpus.kind))]
    encodings = dict(zip(names, corpus.imagededup, strict=True))
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dropped = set(PHash(verbose=False).find_duplicates_to_remove(encoding_map=encodings))
    return np.array([name not in dropped for name in names])


def summary(corpus: Corpus, keep: NDArray[np.bool_]) -> str:
    """Precision, recall and losses."""
    contents = np.unique(corpus.content)
    staying = np.isin(corpus.content, corpus.content[keep])
    right = int((~keep & staying).sum())
    lost = len(contents) - len(np.unique(corpus.content[keep]))
    precision, recall = right / max(1, int((~keep).sum())), right / (len(keep) - len(contents))
    return f"precision {precision:.4f}   recall {recall:.4f}   contents lost {lost:5} of {len(contents):,}"


def by_kind(corpus: Corpus, keep: NDArray[np.bool_], kind: str) -> float:
    """The share of copies that do not stay beside their base, or of variants and bases that are lost."""
    chosen = np.flatnonzero(corpus.kind == kind)
    if kind in COPIES:
        return float(np.mean(~(keep[chosen] & keep[corpus.base()[chosen]])))
    return float(np.mean(~np.isin(corpus.content[chosen], corpus.content[keep])))


if __name__ == "__main__":
    main()
