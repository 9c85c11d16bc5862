"""What a stage of `curate run` is, and what it is given to work with.

A stage reads the tables of the stages before it and writes one table of its own, a folder of Parquet
parts. It never touches another stage's table. There are three kinds, and a stage may be several at once:

    it measures   its table has new columns about pictures (ingest, embeddings, tags)
    it decides    its table has the columns of DECISIONS; a picture with keep = false is out of the race
    it adds       the columns named in `adds` are joined into the curated dataset
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared.database import open_database
from shared.engine import Engine
from shared.settings import Settings

S = TypeVar("S", bound=Settings)

TAG = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("confidence", pa.float32()),
    ]
)
"""One tag of a picture. `name` is in booru spelling (lower case, underscores); `category` is one of
general, character, copyright, artist, meta; `origin` says who gave it (source, tagger, rule); `confidence`, 0 to 1, is
the tagger's, null for the others."""

CAPTION = pa.struct(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
"""One named text of a picture, as it is shown to the text encoder (behind the prompt prefix)."""

DECISIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("keeper", pa.string()),
    ]
)
"""A stage's verdicts: one row per picture it looked at. `reason` is null when kept; `detail` holds the
numbers behind the reason as JSON; `keeper` is the picture that stays in place of a duplicate."""


PICTURES = """
    SELECT image_id, list(location ORDER BY location) AS locations
    FROM ingest SEMI JOIN survivors USING (image_id)
    WHERE error IS NULL GROUP BY image_id ORDER BY min(location)
"""
"""SQL for the pictures that are still kept, for stages that read them: in the order in which they lie in the source, so
that a tar is read from its start to its end."""

LIVE = "live.parquet"
"""In the folder of a work list: the keys of the items that are in the corpus now."""


@dataclass(frozen=True, kw_only=True)
class Job(Generic[S]):
    """What a stage is given."""

    source: str
    """Address of the corpus; the locations in tables are relative to it."""
    settings: S
    folder: Path
    """Where the stage writes its parts."""
    tables: Mapping[str, Path]
    """Folders of the tables written so far, by stage name, in the order of the pipeline."""
    deciders: tuple[str, ...]
    """Names of the stages before this one that decide."""
    engine: Engine

    def connect(self) -> duckdb.DuckDBPyConnection:
        """See `connect`."""
        return connect(self.tables, self.deciders, self.folder)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """A stage as its module declares it, in a constant named STAGE."""

    settings: type[S]
    version: int
    """Raised whenever the same inputs and settings would give other bytes."""
    run: Callable[[Job[S]], str | None]
    """Does the work. What an incremental stage returns goes into the fingerprint of all later stages."""
    decides: bool = False
    adds: tuple[str, ...] = ()
    incremental: bool = False
    """Its table is a work list, which knows itself what is new: it is asked in every run, and its folder is
    named by module, version and settings alone. Any other table is written once per fingerprint, as a whole."""


def connect(
    tables: Mapping[str, Path], deciders: Sequence[str], folder: Path, bounds: str = "true"
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view per table, and `survivors` (image_id): what all deciders keep.

    What does not fit into its memory goes to `folder`. `bounds`, SQL about `image_id`, says among which pictures there
    may be survivors: who asks about a few need not read the decisions about all.
    """
    connection = open_database(folder)
    for name, folder in tables.items():
        connection.execute(f'CREATE VIEW "{name}" AS {rows_of(folder)}')  # `describe` is a word of SQL.
    if deciders:
        dropped = " UNION ALL ".join(f'SELECT image_id FROM "{name}" WHERE NOT keep AND {bounds}' for name in deciders)
        first = f'SELECT image_id FROM "{deciders[0]}" WHERE {bounds}'
        connection.execute(f"CREATE VIEW survivors AS {first} AND image_id NOT IN ({dropped})")
    return connection


def rows_of(folder: Path) -> str:
    """SQL for the rows of a table, without those whose item is not in the corpus any more."""
    parts = f"SELECT * FROM read_parquet('{sql(folder)}/part-*.parquet', hive_partitioning = false)"
    live = folder / LIVE
    if not live.exists():
        return parts
    keys = ", ".join(pq.read_schema(live).names)
    return f"{parts} AS parts SEMI JOIN read_parquet('{sql(live)}') USING ({keys})"


def sql(path: Path) -> str:
    """A path to read, as it may stand between single quotes in SQL: DuckDB takes it for a glob pattern."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path)).replace("'", "''")
