"""The curated dataset as `cache-latents` reads it: through DuckDB, for ten million rows do not fit into memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from shared.database import open_database
from shared.errors import UserError
from shared.stages import sql
from train.cache.manifest import CacheLayout


@contextmanager
def open_curated(work: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the views `curated` and `captions` (image_id, variant, text, caption_sha).

    Raises UserError where there is no curated dataset.
    """
    if not any((work / "curated").glob("part-*.parquet")):
        raise UserError(f"{work}: there is no curated dataset; run `curate run SOURCE --work {work}` first")
    with open_database(CacheLayout(work).root) as database:
        database.execute(f"CREATE VIEW curated AS FROM read_parquet('{sql(work / 'curated')}/part-*.parquet')")
        database.execute(
            "CREATE VIEW captions AS SELECT image_id, variant, text, sha256(text) AS caption_sha"
            " FROM (SELECT image_id, unnest(captions, recursive := true) FROM curated)"
        )
        yield database


def caption_variants(database: duckdb.DuckDBPyConnection) -> list[str]:
    """Their names. Raises UserError for one that cannot be the name of a folder."""
    names = [name for (name,) in database.execute("SELECT DISTINCT variant FROM captions ORDER BY 1").fetchall()]
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"caption variant {name!r}: name it with letters, digits, - and _ only")
    return names
