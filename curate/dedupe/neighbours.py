"""All pairs of pictures whose embeddings are similar.

On a GPU, and for up to EXACT pictures without one, every picture is compared with every other, in blocks: nothing is
left out. Beyond that it would take hours, so faiss searches an inverted file: the embeddings lie in lists around
4 sqrt(n) centres, and each is compared with those in the PROBES lists nearest to it. A pair is found if either of the
two finds the other.

The embeddings are float16 and L2-normalised; products are exact and sums are in float32, so that a cosine depends on
the machine in its last digits only.
"""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from curate.dedupe.star import Pairs
from shared.errors import UserError
from shared.progress import Meter

Embeddings = NDArray[np.float16]
Cosines = NDArray[np.float32]

EXACT = 1_000_000
"""Embeddings that are all compared with each other without a GPU. A million of 768 numbers are 8e14 operations, about
two hours on two cores."""

MOST = 1 << 27
"""More pairs than this are an error: they would take 6 GB here, and days to verify."""

BLOCKS = {"cpu": (1 << 12, 1 << 12), "cuda": (1 << 16, 1 << 13)}
"""Rows and columns that are compared at a time, by device: 64 MB and 2 GB of cosines. The rows stay on the device while
the columns go by."""

PROBES = 32
"""Lists in which each picture searches. Of 10,000 pairs with cosines from 0.75 on, planted among 100,000 random
directions in 256 dimensions (a hard case), it finds 99.87 %; 64 lists find 99.98 %, 8 lists 98.0 %."""

SAMPLE = 64
"""Embeddings per list by which the centres are found; faiss warns below 39."""

QUERIES = 1 << 12
"""Searches of the inverted file at a time."""


def neighbours(embeddings: Embeddings, threshold: float) -> tuple[Pairs, Cosines]:
    """Indices (i < j) of every two of the embeddings (n, dim) with a cosine of at least `threshold`.

    Returns:
        (pairs, 2), each pair once, sorted by (i, j), and their cosines (pairs).

    Raises:
        UserError: there are more than MOST pairs, or faiss is needed and not installed.
    """
    found = _Found(threshold)
    if torch.cuda.is_available():
        _compare_all(embeddings, found, "cuda")
    elif len(embeddings) <= EXACT:
        _compare_all(embeddings, found, "cpu")
    else:
        _search_lists(embeddings, found)
    return found.pairs()


class _Found:
    """Pairs as they are found."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._packed = [np.empty(0, np.int64)]
        self._cosines = [np.empty(0, np.float32)]
        self._total = 0

    def expect(self, pairs: int) -> None:
        """Raises UserError if there are too many with `pairs` more."""
        self._total += pairs
        if self._total > MOST:
            raise UserError(
                f"near.cosine = {self.threshold}: more than {MOST:,} pairs of pictures are at least this similar; "
                "raise it, for to this model unrelated pictures are"
            )

    def add(self, i: NDArray[np.int64], j: NDArray[np.int64], cosines: Cosines) -> None:
        """Pairs that were expected, in either order."""
        self._packed.append(np.minimum(i, j) << 32 | np.maximum(i, j))
        self._cosines.append(cosines)

    def pairs(self) -> tuple[Pairs, Cosines]:
        """All of them, sorted, each once."""
        packed, first = np.unique(np.concatenate(self._packed), return_index=True)
        return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1), np.concatenate(self._cosines)[first]


def _compare_all(embeddings: Embeddings, found: _Found, device: str) -> None:
    """Compare every embedding with all that follow."""
    total, (rows, columns) = len(embeddings), BLOCKS[device]
    work = sum(len(embeddings[row : row + rows]) * (total - row) for row in range(0, total, rows))
    with Meter("neighbours", work, "million pairs", scale=10**6) as meter:
        for row in range(0, total, rows):
            block = torch.tensor(embeddings[row : row + rows], device=device)
            for column in range(row, total, columns):
                others = torch.tensor(embeddings[column : column + columns], device=device)
                cosines = _products(block, others)
                similar = cosines >= found.threshold
                if column < row + rows:
                    similar = similar.triu(row - column + 1)
                if count := int(similar.count_nonzero()):
                    found.expect(count)
                    i, j = (places.cpu().numpy() for places in similar.nonzero(as_tuple=True))
                    found.add(i + row, j + column, cosines[similar].cpu().numpy())
                meter.advance(len(block) * len(others))


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner products (m, n) of float16 (m, dim) and (n, dim), as float32."""
    if a.is_cuda:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T


def _search_lists(embeddings: Embeddings, found: _Found) -> None:
    """Compare each embedding with those in the lists nearest to it. They are in memory meanwhile, as float16."""
    faiss = _faiss(len(embeddings))
    total, dim = embeddings.shape
    lists = int(4 * total**0.5)
    centres = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        centres, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.nprobe = PROBES
    sample = np.random.default_rng(0).choice(total, min(total, SAMPLE * lists), replace=False)
    index.train(embeddings[np.sort(sample)].astype(np.float32))
    for _, block in _blocks(embeddings):
        index.add(block)
    with Meter("neighbours", total, "pictures") as meter:
        for start, block in _blocks(embeddings):
            ends, cosines, others = index.range_search(block, found.threshold)
            own = start + np.repeat(np.arange(len(block)), np.diff(ends.astype(np.int64)))
            pair = own != others
            found.expect(int(pair.sum()) // 2)  # Most are found from both sides.
            found.add(own[pair], others[pair], cosines[pair])
            meter.advance(len(block))


def _blocks(embeddings: Embeddings) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(embeddings), QUERIES):
        yield start, embeddings[start : start + QUERIES].astype(np.float32)


def _faiss(pictures: int) -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise UserError(
            f"near.cosine: {pictures:,} pictures (more than {EXACT:,}) need a GPU, or faiss: "
            "pip install 'illustrious-lu[semantic]'"
        ) from None
    return faiss
