"""The stage `near`: pictures that look the same. Of each star of duplicates the keeper stays; variants get a group.

A perceptual hash proposes: all pairs within `distance` bits, exactly; with `cosine` set, so do embeddings. A comparison
of the pictures' descriptors decides: a duplicate is dropped, with the numbers of its comparison with its keeper; a
variant shares the drawing but differs on purpose, and stays; the rest is chance. See `curate.dedupe.candidates`,
`neighbours`, `verify` and `star`.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.dedupe.candidates import Candidates
from curate.dedupe.descriptor import SIZE
from curate.dedupe.keeper import KEEPER, Keeper, ranked
from curate.dedupe.star import Pairs, Stars, stars
from curate.dedupe.verify import DUPLICATE, NUMBERS, VARIANT, Verdicts, compare
from shared.errors import UserError
from shared.progress import Meter
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import read, write_query

NEAR = pa.schema([*DECISIONS, pa.field("variant_group", pa.string()), pa.field("variant_rank", pa.int32())])
"""`variant_group` is the best picture of a group of variants, null for a picture without any; `variant_rank` counts
its members from 0, in the order of the keeper rule; `detail` of the others holds the numbers of their comparison with
the best."""

CHUNK = 512
"""Pairs that are compared in one go: their planes stay in the processor's cache."""


K = TypeVar("K", bound=np.generic)


class NearSettings(Settings):
    """What counts as nearly the same."""

    distance: int = Field(default=4, ge=0, le=8)
    """Most bits (of 64) in which the hashes of two pictures differ that are compared."""
    blank: float = Field(default=0.98, ge=0, le=1)
    """Pictures with this flatness and more are left alone: there is nothing to see, and their hash is noise."""
    cosine: float | None = Field(default=None, ge=0.5, le=1)
    """Pictures whose embeddings (the stage `embed`) have at least this cosine are compared as well."""
    keeper: Keeper = KEEPER
    """What decides which of several duplicates stays, as in `exact`."""


def run(job: Job[NearSettings]) -> None:
    """Decide about every picture that is still kept."""
    cosine = job.settings.cosine
    if cosine is not None and "embed" not in job.tables:
        raise UserError(f"near.cosine = {cosine}: needs the stage curate.embed before curate.dedupe.near")
    with job.connect() as connection:
        _rank(connection, job.settings)
        similar, cosines = _similar(connection, cosine, job.folder / ".embeddings.tmp")
        rows = connection.execute("SELECT rank, phash FROM ranked WHERE NOT blank ORDER BY rank").fetchnumpy()
        phash = np.ascontiguousarray(rows["phash"], np.uint64)
        candidates = Candidates(rows["rank"], phash, job.settings.distance, similar)
        pictures = Pictures(connection, candidates.rank, job.folder / ".descriptors.tmp")
        comparison = Comparison(pictures, candidates.pairs_at_most())
        found = Stars(len(candidates.rank), comparison)
        with comparison.meter:
            for first, last, pairs in candidates.blocks(found):
                found.decide(first, last, pairs)
        connection.register("edges", _edges(candidates, comparison, found))
        better, worse = similar.T
        connection.register("cosines", pa.table({"better": better, "worse": worse, "cosine": cosines}))
        write_query(connection, _decide(NUMBERS), job.folder, NEAR)


def _rank(connection: duckdb.DuckDBPyConnection, settings: NearSettings) -> None:
    """The table `ranked`: the pictures that are still kept, in the order of the keeper rule, from 0."""
    connection.execute(
        f"""
        CREATE TEMP TABLE ranked AS
        SELECT image_id, phash, flatness >= {settings.blank} AS blank, width, height,
            row_number() OVER (ORDER BY rank) - 1 AS rank
        FROM ({ranked(settings.keeper)}) SEMI JOIN survivors USING (image_id)
        """
    )


def _similar(
    connection: duckdb.DuckDBPyConnection, cosine: float | None, path: Path
) -> tuple[Pairs, NDArray[np.float32]]:
    """Pairs of ranks whose embeddings have at least this cosine, and their cosines; none where it is None."""
    if cosine is None:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    from curate.dedupe.neighbours import neighbours  # Here, for it takes seconds to import torch.

    connection.execute(
        """
        CREATE TEMP TABLE embedded AS
        SELECT image_id, rank, row_number() OVER (ORDER BY rank) - 1 AS place
        FROM ranked SEMI JOIN (FROM embed WHERE embedding IS NOT NULL) USING (image_id) WHERE NOT blank
        """
    )
    rank = connection.execute("SELECT rank FROM embedded ORDER BY rank").fetchnumpy()["rank"]
    pairs, cosines = neighbours(_embeddings(connection, len(rank), path), cosine)
    return rank[pairs], cosines


def _embeddings(connection: duckdb.DuckDBPyConnection, pictures: int, path: Path) -> NDArray[np.float16]:
    """The embeddings of the table `embedded`, by place, in a file."""
    size = connection.execute("SELECT max(octet_length(embedding)) FROM embed SEMI JOIN embedded USING (image_id)")
    dim = (size.fetchall()[0][0] or 0) // 2
    embeddings = _mapped(path, np.float16, (pictures, dim))
    query = "SELECT place, embedding FROM embed JOIN embedded USING (image_id)"
    for batch in read(connection, query):
        rows = np.frombuffer(b"".join(batch["embedding"].to_pylist()), "<f2")
        embeddings[batch["place"].to_numpy()] = rows.reshape(-1, dim)
    return embeddings


def _mapped(path: Path, kind: type[K], shape: tuple[int, int]) -> NDArray[K]:
    """An array in a file, for it may exceed the memory; the file lives as long as it is mapped, and no longer."""
    if not shape[0]:
        return np.empty(shape, kind)
    array = np.memmap(path, kind, "w+", shape=shape)
    path.unlink()
    return array


class Pictures:
    """Descriptors and sizes of the pictures with these ranks."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, rank: NDArray[np.int64], path: Path) -> None:
        self.sizes = np.empty((len(rank), 2), np.int32)
        self.descriptors = _mapped(path, np.uint8, (len(rank), SIZE))
        connection.register("involved", pa.table({"rank": rank, "place": np.arange(len(rank))}))
        query = """
            SELECT place, descriptor, width, height FROM ingest
            JOIN (SELECT image_id, place FROM ranked JOIN involved USING (rank)) USING (image_id)
            WHERE error IS NULL
        """
        for batch in read(connection, query):
            place = batch["place"].to_numpy()
            descriptors = np.frombuffer(b"".join(batch["descriptor"].to_pylist()), np.uint8)
            self.descriptors[place] = descriptors.reshape(-1, SIZE)
            self.sizes[place] = np.stack([batch["width"].to_numpy(), batch["height"].to_numpy()], axis=1)


class Comparison:
    """Compares pairs of pictures, and remembers those that are alike."""

    def __init__(self, pictures: Pictures, at_most: int) -> None:
        self._pictures = pictures
        self._pool = ThreadPoolExecutor(os.cpu_count())  # NumPy lets go of the interpreter's lock.
        self._alike: list[tuple[Pairs, Verdicts]] = []
        self.meter = Meter("near", at_most, "pairs at most")

    def __call__(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Which of the pairs are duplicates."""
        chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
        duplicate = []
        for chunk, verdicts in zip(chunks, self._pool.map(self._compare, chunks), strict=True):
            alike = np.flatnonzero((verdicts.kind == DUPLICATE) | (verdicts.kind == VARIANT))
            self._alike.append((chunk[alike], verdicts.take(alike)))
            duplicate.append(verdicts.kind == DUPLICATE)
            self.meter.advance(len(chunk))
        return np.concatenate(duplicate)

    def _compare(self, pairs: Pairs) -> Verdicts:
        a, b = pairs.T
        descriptors, sizes = self._pictures.descriptors, self._pictures.sizes
        return compare(descriptors[a], descriptors[b], sizes[a], sizes[b])

    def alike(self) -> tuple[Pairs, Verdicts]:
        """The pairs that were found to be duplicates or variants."""
        pairs, verdicts = zip(*self._alike, strict=True) if self._alike else ((), ())
        return np.concatenate([np.empty((0, 2), np.int64), *pairs]), Verdicts.concatenate(verdicts)


def _edges(candidates: Candidates, comparison: Comparison, found: Stars) -> pa.Table:
    """What there is to say about pictures that are dropped or have variants, one row each.

    `other` is the keeper of a dropped picture, or the best of a group of variants; pictures are given by rank.
    """
    pairs, verdicts = comparison.alike()
    kept = found.kept()
    dropped = np.flatnonzero(verdicts.kind == DUPLICATE)
    related = np.flatnonzero((verdicts.kind == VARIANT) & kept[pairs].all(axis=1))
    best = stars(pairs[related], len(kept))
    members = related[best[pairs[related, 1]] == pairs[related, 0]]
    place = _places(best)
    leaders = np.unique(pairs[members, 0])
    edges = np.concatenate([dropped, members])
    rank, phash = candidates.rank, candidates.phash
    columns = {
        "rank": pa.array(rank[pairs[edges, 1]]),
        "other": pa.array(rank[pairs[edges, 0]]),
        "keep": pa.array(np.repeat([False, True], [len(dropped), len(members)])),
        "variant_rank": pa.array([None] * len(dropped) + place[pairs[members, 1]].tolist(), pa.int32()),
        "distance": pa.array(np.bitwise_count(np.bitwise_xor(*phash[pairs[edges]].T))),
        **{name: pa.array(values[edges]) for name, values in verdicts.numbers.items()},
    }
    first = {
        "rank": rank[leaders],
        "keep": np.ones(len(leaders), bool),
        "variant_rank": np.zeros(len(leaders), np.int32),
    }
    return pa.concat_tables([pa.table(columns), pa.table(first)], promote_options="default")


def _places(best: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each node among those with the same best one, from 0, in their order."""
    order = np.argsort(best, kind="stable")
    starts = np.searchsorted(best[order], best[order])
    places = np.empty(len(best), np.int64)
    places[order] = np.arange(len(best)) - starts
    return places


def _decide(names: Sequence[str]) -> str:
    numbers = "".join(f", '{name}', round(edges.{name}::DOUBLE, 3)" for name in names)
    cosine = "'cosine', round(cosine::DOUBLE, 3)"
    return f"""
        SELECT
            ranked.image_id,
            coalesce(edges.keep, true) AS keep,
            CASE WHEN NOT keep THEN 'near_duplicate' END AS reason,
            CASE
                WHEN cosine IS NOT NULL THEN json_object('distance', distance, {cosine}{numbers})
                WHEN other IS NOT NULL THEN json_object('distance', distance{numbers})
            END AS detail,
            CASE WHEN NOT keep THEN others.image_id END AS keeper,
            CASE WHEN variant_rank IS NOT NULL THEN coalesce(others.image_id, ranked.image_id) END AS variant_group,
            variant_rank
        FROM ranked
        LEFT JOIN edges ON edges.rank = ranked.rank
        LEFT JOIN ranked AS others ON others.rank = edges.other
        LEFT JOIN cosines ON better = edges.other AND worse = edges.rank
        ORDER BY ranked.image_id
    """


STAGE = Stage(settings=NearSettings, version=3, run=run, decides=True, adds=("variant_group",))
