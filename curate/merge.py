"""The stage `merge`: one row per picture that is kept, with what was known about all its copies.

Its copies are the files with the same bytes (`locations`) and the files of every picture it is the keeper of
(`duplicates`). Its own metadata comes first, then theirs in the order of the keeper rule:

    tags            the union, in that order; a category other than general wins
    rating          the most explicit one: a copy that somebody rated too mildly must not win
    created_at      the earliest
    source_urls     all of them
    anything else   the first that is given
"""

import pyarrow as pa

from curate.dedupe.keeper import ranked
from curate.ingest import MEASURES
from curate.sources.metadata import METADATA, RATINGS
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.tables import write_query

MERGED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("locations", pa.list_(pa.string()), nullable=False),
        pa.field("duplicates", pa.list_(pa.string()), nullable=False),
        *MEASURES,
        *(field for field in METADATA if field.name != "source_url"),
        pa.field("source_urls", pa.list_(pa.string()), nullable=False),
        pa.field("metadata_error", pa.string()),
    ]
)

FIRST_GIVEN = ("caption", "score", "favorites", "post_id", "parent_id", "metadata_error")


class MergeSettings(Settings):
    """There is nothing to set."""


def run(job: Job[MergeSettings]) -> None:
    """Unite the rows of `ingest` and `metadata` under the pictures that are kept."""
    with job.connect() as connection:
        connection.execute(f"CREATE TEMP TABLE owners AS {owners(job.deciders)}")
        connection.execute(f"CREATE TEMP TABLE places AS {_PLACES}")
        write_query(connection, _QUERY, job.folder, MERGED)


def owners(deciders: tuple[str, ...]) -> str:
    """SQL for (image_id, owner): the picture itself, or the keeper of its keeper ... in the end."""
    query = "SELECT DISTINCT image_id, image_id AS owner FROM ingest WHERE error IS NULL"
    for decider in deciders:
        query = (
            f"SELECT o.image_id, coalesce(d.keeper, o.owner) AS owner "
            f'FROM ({query}) o LEFT JOIN "{decider}" d ON d.image_id = o.owner'
        )
    return query


_MEASURES = ", ".join(MEASURES.names)
_FIRST = ", ".join(f"first({name} ORDER BY place) FILTER ({name} IS NOT NULL) AS {name}" for name in FIRST_GIVEN)

# The files are ordered once, in a narrow table; what is wide (tags, texts) is joined to that.
_PLACES = f"""
    SELECT location, image_id, owner,
        row_number() OVER (PARTITION BY owner ORDER BY image_id <> owner, rank, location) AS place
    FROM (SELECT location, image_id FROM ingest WHERE error IS NULL)
    JOIN owners USING (image_id)
    JOIN (SELECT image_id, rank FROM ({ranked()})) USING (image_id)
    SEMI JOIN survivors ON survivors.image_id = owner
"""

_QUERY = f"""
    WITH given AS (
        SELECT owner, unnest(tags) AS tag, (place, generate_subscripts(tags, 1)) AS place
        FROM places JOIN metadata USING (location)
    ),
    united AS (
        SELECT owner, min(place) AS place, arg_min(tag, (tag.category = 'general', place)) AS tag
        FROM given GROUP BY owner, tag.name
    ),
    united_tags AS (
        SELECT owner, list(tag ORDER BY place) AS tags FROM united GROUP BY owner
    ),
    files AS (
        SELECT
            owner,
            list(location ORDER BY location) FILTER (image_id = owner) AS locations,
            coalesce(list(location ORDER BY location) FILTER (image_id <> owner), []) AS duplicates
        FROM places GROUP BY owner
    ),
    words AS (
        SELECT
            owner,
            {_FIRST},
            {list(RATINGS)}[max(list_position({list(RATINGS)}, rating))] AS rating,
            min(created_at) AS created_at,
            coalesce(list(DISTINCT source_url ORDER BY source_url) FILTER (source_url IS NOT NULL), []) AS source_urls
        FROM places JOIN (SELECT * EXCLUDE (tags, image_id) FROM metadata) USING (location) GROUP BY owner
    ),
    measures AS (SELECT DISTINCT ON (image_id) image_id AS owner, {_MEASURES} FROM ingest WHERE error IS NULL)
    SELECT owner AS image_id, coalesce(tags, []) AS tags, files.*, measures.*, words.*
    FROM files JOIN measures USING (owner) JOIN words USING (owner) LEFT JOIN united_tags USING (owner)
    ORDER BY image_id
"""

STAGE = Stage(
    settings=MergeSettings,
    version=3,
    run=run,
    adds=tuple(name for name in MERGED.names if name != "image_id"),
)
