"""`curate tags`: which tags the pictures of a work directory have, from its tables alone."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from rich.table import Table

from curate.work import Work
from shared.errors import UserError
from shared.pipelines import load
from shared.progress import console
from shared.spelling import tag_name
from shared.stages import connect

TOP = 20
"""Rows of a table, and tags that are looked at together."""


def show(work: Work, name: str | None, rare: int | None) -> None:
    """Print tags by category and the most frequent ones; or what stands beside `name`; or characters of few pictures.

    Raises UserError where the stage `merge` has not finished, or no picture has the tag.
    """
    work.saved()
    folders = {stage: work.folder / folder for stage, folder in work.record().tables.items()}
    if "merge" not in folders:
        raise UserError(f"{work.folder}: the stage merge has not finished; `curate run` goes on where it stopped")
    deciders = [spec.name for spec in load(work.pipeline).stages if spec.stage.decides and spec.name in folders]
    with TemporaryDirectory() as place, connect(folders, deciders, Path(place)) as connection:
        _prepare(connection, "tags" in folders, "tagger" in folders)
        if name is not None:
            _show_beside(connection, tag_name(name), work)
        elif rare is not None:
            _show_rare(connection, rare)
        else:
            _show_categories(connection, "tags" in folders)
            _show_top(connection)


def _prepare(connection: duckdb.DuckDBPyConnection, normal: bool, tagger: bool) -> None:
    """Tables of the pictures that are kept (`pictures`) and of the counts of their tags, `before` and `after`."""
    kept = "SEMI JOIN survivors USING (image_id)"
    beside = "LEFT JOIN tagger USING (image_id)" if tagger else ""
    given = "list_concat(merge.tags, coalesce(tagger.tags, []))" if tagger else "merge.tags"
    connection.execute(f"CREATE VIEW given AS SELECT image_id, {given} AS tags FROM merge {kept} {beside}")
    connection.execute(
        f"CREATE VIEW pictures AS SELECT image_id, tags FROM {'tags' if normal else 'given'} {kept if normal else ''}"
    )
    for table, view in (("before", "given"), ("after", "pictures")):
        connection.execute(f"""
            CREATE TEMP TABLE {table} AS
            SELECT name, category, pictures
            FROM (
                SELECT name, count(*) AS pictures
                FROM (SELECT unnest(list_distinct([tag.name FOR tag IN tags])) AS name FROM {view}) GROUP BY name
            ) JOIN (
                SELECT tag.name, arg_min(tag.category, (tag.category = 'general', tag.category)) AS category
                FROM (SELECT unnest(tags) AS tag FROM {view}) GROUP BY tag.name
            ) USING (name)
        """)


def _show_categories(connection: duckdb.DuckDBPyConnection, normal: bool) -> None:
    """Print how many tags each category has, and how often they are given."""
    rows = connection.execute("""
        SELECT category, count(before.name), coalesce(sum(before.pictures), 0)::BIGINT,
            count(after.name), coalesce(sum(after.pictures), 0)::BIGINT
        FROM before FULL JOIN after USING (name, category) GROUP BY category ORDER BY category
    """).fetchall()
    if normal:
        _print(("category", "tags given", "times", "tags after normalisation", "times"), rows)
    else:
        _print(("category", "tags", "times"), [row[:3] for row in rows])


def _show_top(connection: duckdb.DuckDBPyConnection) -> None:
    """Print the most frequent tags, and with which of one another they come most often."""
    connection.execute(f"CREATE TEMP TABLE top AS FROM after ORDER BY pictures DESC, name LIMIT {TOP}")
    connection.execute("""
        CREATE TEMP TABLE seen AS
        SELECT list_intersect([tag.name FOR tag IN tags], (SELECT list(name) FROM top)) AS names FROM pictures
    """)
    rows = connection.execute("""
        WITH pairs AS (
            SELECT one, other, count(*) AS together
            FROM (SELECT one, unnest(names) AS other FROM (SELECT unnest(names) AS one, names FROM seen))
            WHERE one <> other GROUP BY ALL
        ),
        beside AS (
            SELECT one AS name, max_by(
                format('{} {:.0f} %', other, 100 * together / pictures), (together, -rank), 3) AS others
            FROM pairs JOIN top ON top.name = one
            JOIN (SELECT name AS other, row_number() OVER (ORDER BY pictures DESC, name) AS rank FROM top) USING (other)
            GROUP BY one
        )
        SELECT name, category, pictures, pictures / (SELECT count(*) FROM pictures), coalesce(others, [])
        FROM top LEFT JOIN beside USING (name) ORDER BY pictures DESC, name
    """).fetchall()
    cells = [
        (name, category, count, f"{share:.1%}", ", ".join(others)) for name, category, count, share, others in rows
    ]
    _print(("tag", "category", "pictures", "share", "together with"), cells, words=(0, 1, 4))


def _show_beside(connection: duckdb.DuckDBPyConnection, name: str, work: Work) -> None:
    """Print the tags that pictures with a tag have most often."""
    found = connection.execute("SELECT pictures FROM after WHERE name = ?", [name]).fetchone()
    if found is None:
        raise UserError(f"{work.folder}: no picture that is kept has the tag {name!r}")
    rows = connection.execute(
        f"""
        WITH beside AS (
            SELECT name, count(*) AS together
            FROM (
                SELECT unnest(names) AS name
                FROM (SELECT list_distinct([tag.name FOR tag IN tags]) AS names FROM pictures)
                WHERE list_contains(names, $name)
            ) GROUP BY name
        )
        SELECT name, category, together, together / $count,
            together / $count / (pictures / (SELECT count(*) FROM pictures))
        FROM beside JOIN after USING (name) WHERE name <> $name ORDER BY together DESC, name LIMIT {TOP}
        """,
        {"name": name, "count": found[0]},
    ).fetchall()
    console.print(f"{found[0]:,} pictures have {name}", soft_wrap=True, markup=False)
    cells = [(*row[:3], f"{row[3]:.1%}", f"{row[4]:.1f} x") for row in rows]
    _print(("tag", "category", "pictures", "share", "as often as in all pictures"), cells, words=(0, 1))


def _show_rare(connection: duckdb.DuckDBPyConnection, most: int) -> None:
    """Print the characters of at most so many pictures."""
    rows = connection.execute(
        "SELECT name, pictures FROM after WHERE category = 'character' AND pictures <= ? ORDER BY pictures DESC, name",
        [most],
    ).fetchall()
    _print(("character", "pictures"), rows)
    console.print(f"{len(rows):,} characters have at most {most:,} pictures", soft_wrap=True)


def _print(heads: tuple[str, ...], rows: list[tuple[Any, ...]], words: tuple[int, ...] = (0,)) -> None:
    """Print a table; the columns that are not words are numbers."""
    table = Table(*heads)
    for place, column in enumerate(table.columns):
        column.justify = "left" if place in words else "right"
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    console.print(table, markup=False)
