"""The stage `near`: pictures whose perceptual hashes differ in few bits. Of each star the keeper stays.

All pairs within the distance are found, exactly: cut the 64 bits into distance + 1 bands; two hashes that differ in
at most `distance` bits agree in at least one band (pigeonhole), so a join on bands meets every such pair. Pictures
with equal hashes have the same neighbours and so the same fate; the search runs over distinct hashes, each
standing for the best of its pictures.
"""

import itertools

import duckdb
import pyarrow as pa
from pydantic import Field

from curate.dedupe.keeper import RANKED
from curate.dedupe.star import stars
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query

BITS = 64


class NearSettings(Settings):
    """What counts as nearly the same."""

    distance: int = Field(default=4, ge=0, le=8)
    """Most bits (of 64) in which the hashes of duplicates differ."""
    blank: float = Field(default=0.98, ge=0, le=1)
    """Pictures with this flatness and more are left alone: there is nothing to see, and their hash is noise."""


def run(job: Job[NearSettings]) -> None:
    """Decide about every picture that is still kept."""
    with job.connect() as connection:
        connection.execute(
            f"CREATE TEMP TABLE ranked AS SELECT image_id, phash, flatness >= {job.settings.blank} AS blank, rank "
            f"FROM ({RANKED}) SEMI JOIN survivors USING (image_id)"
        )
        connection.execute(
            "CREATE TEMP TABLE hashes AS SELECT phash, min(rank) AS rank FROM ranked WHERE NOT blank GROUP BY phash"
        )
        keepers = stars(pairs(connection, job.settings.distance))
        dropped = {"rank": list(keepers.keys()), "keeper": list(keepers.values())}
        connection.register("stars", pa.table(dropped, pa.schema({"rank": pa.int64(), "keeper": pa.int64()})))
        write_query(connection, _DECIDE, job.folder, DECISIONS)


def pairs(connection: duckdb.DuckDBPyConnection, distance: int) -> list[tuple[int, int]]:
    """(better rank, worse rank) of every two rows of `hashes` (phash, rank) within `distance` bits."""
    edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
    bands = " UNION ALL ".join(
        f"SELECT {low} AS band, (phash >> {low}) & {(1 << (high - low)) - 1}::UBIGINT AS value, phash, rank FROM hashes"
        for low, high in itertools.pairwise(edges)
    )
    return connection.execute(
        f"WITH bands AS ({bands}) SELECT DISTINCT a.rank, b.rank FROM bands a JOIN bands b USING (band, value) "
        f"WHERE a.rank < b.rank AND bit_count(xor(a.phash, b.phash)) <= {distance}"
    ).fetchall()


_DECIDE = """
    WITH verdicts AS (
        SELECT ranked.image_id, ranked.phash, ranked.rank, coalesce(stars.keeper, hashes.rank, ranked.rank) AS best
        FROM ranked
        LEFT JOIN hashes ON hashes.phash = ranked.phash AND NOT ranked.blank
        LEFT JOIN stars ON stars.rank = hashes.rank
    )
    SELECT
        verdicts.image_id,
        verdicts.rank = best AS keep,
        CASE WHEN NOT keep THEN 'near_duplicate' END AS reason,
        CASE WHEN NOT keep
            THEN json_object('distance', bit_count(xor(verdicts.phash, keepers.phash))) END AS detail,
        CASE WHEN NOT keep THEN keepers.image_id END AS keeper
    FROM verdicts JOIN ranked AS keepers ON keepers.rank = best
    ORDER BY verdicts.image_id
"""

STAGE = Stage(settings=NearSettings, version=1, run=run, decides=True)
