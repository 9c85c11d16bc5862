"""The stage `metadata`: what is known about every picture, from the files beside it and from the tables of posts.

A picture's own files come first; its post fills in what is missing. A post is found by what its table says:

    file    its location; for a member of a tar, the tar's location and the member's name, or just that name
    md5     the MD5 of its bytes (see `ingest.md5`), or a file name of 32 hex digits
    id      the post id that its own files give, or a file name of digits
"""

import pyarrow as pa

from curate.sources.metadata import METADATA
from shared.progress import console
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.tables import write_query

UNITED = pa.schema(
    [
        pa.field("location", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        *METADATA,
        pa.field("metadata_error", pa.string()),
    ]
)
"""One row per readable picture file. Rows with an error are rows of tables: of no use (bad_metadata), or about a file
that is not in the source (missing_file)."""


class MetadataSettings(Settings):
    """There is nothing to set."""


def run(job: Job[MetadataSettings]) -> None:
    """Join `ingest` and `posts`."""
    with job.connect() as connection:
        connection.execute(f"CREATE TEMP TABLE first_posts AS {_FIRST_POSTS}")
        connection.execute(f"CREATE TEMP TABLE found AS {_FOUND}")
        write_query(connection, _QUERY, job.folder, UNITED)
        unused = connection.execute("SELECT count(*) FROM first_posts ANTI JOIN found USING (post)").fetchone()
        posts = connection.execute("SELECT count(*) FROM first_posts").fetchone()
    if posts and posts[0] and unused:
        console.print(f"metadata: {posts[0]:,} posts, {unused[0]:,} of them of pictures that are not in the source")


_FIRST_POSTS = """
    SELECT kind, key, min((origin, place)) AS post, count(*) AS posts FROM posts WHERE error IS NULL GROUP BY kind, key
"""

_FOUND = r"""
    WITH named AS (
        SELECT location, md5, post_id, file <> location AS member, file,
            CASE WHEN file <> location THEN regexp_replace(location, '@\d+\+\d+$', '') ELSE location END AS path
        FROM ingest WHERE error IS NULL
    ),
    stems AS (
        SELECT *, lower(regexp_extract(path, '([^/]*?)(\.[^/.]*)?$', 1)) AS stem FROM named
    ),
    known AS (
        SELECT location,
            coalesce(md5, CASE WHEN regexp_full_match(stem, '[0-9a-f]{32}') THEN stem END) AS md5,
            coalesce(lower(post_id), CASE WHEN regexp_full_match(stem, '\d+') THEN stem END) AS id
        FROM stems
    ),
    keys AS (
        SELECT location, 0 AS preference, 'file' AS kind, path AS key FROM stems
        UNION ALL SELECT location, 1, 'file', substr(path, length(file) + 2) FROM stems WHERE member
        UNION ALL SELECT location, 2, 'md5', md5 FROM known
        UNION ALL SELECT location, 3, 'id', id FROM known
    )
    SELECT location, arg_min(post, preference) AS post, arg_min(posts, preference) AS posts
    FROM keys JOIN first_posts USING (kind, key) GROUP BY location
"""

_COLUMNS = ", ".join(f"coalesce(own.{name}, post.{name}) AS {name}" for name in METADATA.names)
_NULLS = ", ".join(f"NULL AS {name}" for name in METADATA.names)

_QUERY = f"""
    SELECT own.location, own.image_id, NULL AS error, NULL AS detail, {_COLUMNS},
        nullif(concat_ws('; ',
            own.metadata_error,
            'metadata table: ' || post.metadata_error,
            CASE WHEN found.posts > 1 THEN 'the metadata table has more than one row for this file' END
        ), '') AS metadata_error
    FROM (SELECT * EXCLUDE (descriptor) FROM ingest WHERE error IS NULL) AS own
    LEFT JOIN found USING (location)
    LEFT JOIN posts AS post ON (post.origin, post.place) = found.post
    UNION ALL
    SELECT parse_filename(origin) || ':' || posts.place, NULL, 'bad_metadata', error, {_NULLS}, NULL
    FROM posts WHERE error IS NOT NULL
    UNION ALL
    SELECT key, NULL, 'missing_file', 'the metadata table names this file, but it is not in the source', {_NULLS}, NULL
    FROM first_posts ANTI JOIN found USING (post)
    WHERE kind = 'file' AND key NOT IN (SELECT location FROM ingest)
    ORDER BY location
"""

STAGE = Stage(settings=MetadataSettings, version=2, run=run)
