"""The end of every run: `curated/`, the dataset, and `rejects.parquet`, everything else with a reason.

Every file of the source is in the `locations` of exactly one row of the two, except metadata. Both depend on the corpus
and the settings alone: no times, no absolute paths.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared.files import atomic_file, atomic_folder
from shared.pipelines import StageSpec
from shared.stages import connect
from shared.tables import read, row_groups, write_query

REJECTS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("locations", pa.list_(pa.string()), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("keeper", pa.string()),
    ]
)
"""`image_id` is null where a file could not be read; `detail` is JSON; `keeper` stays in place of a duplicate."""


def publish(stages: Sequence[StageSpec], tables: dict[str, Path], curated: Path, rejects: Path) -> None:
    """Write both, from the finished tables of all stages."""
    deciders = [spec.name for spec in stages if spec.stage.decides]
    with connect(tables, deciders, curated.parent) as connection:
        with atomic_folder(curated) as folder:
            query, schema = _curated(stages, tables)
            write_query(connection, query, folder, schema)
        with atomic_file(rejects) as file:
            _write_rejects(connection, deciders, file)


def _curated(stages: Sequence[StageSpec], tables: dict[str, Path]) -> tuple[str, pa.Schema]:
    """The survivors with the columns that stages add, and the schema of that.

    A column of a later stage takes the place of an earlier one of the same name.
    """
    fields = {"image_id": pa.field("image_id", pa.string(), nullable=False)}
    columns, joins = {"image_id": "image_id"}, ""
    for spec in stages:
        if not spec.stage.adds:
            continue
        schema = pq.read_schema(next(tables[spec.name].glob("part-*.parquet")))
        for name in spec.stage.adds:
            fields[name], columns[name] = schema.field(name), f'"{spec.name}".{name}'
        joins += f' JOIN "{spec.name}" USING (image_id)'
    query = f"SELECT {', '.join(columns.values())} FROM survivors{joins} ORDER BY image_id"
    return query, pa.schema(fields.values())


def _write_rejects(connection: duckdb.DuckDBPyConnection, deciders: Sequence[str], file: Path) -> None:
    dropped = " UNION ALL ".join(
        f"""SELECT {place} AS place, '{name}' AS stage, image_id, reason, detail, keeper FROM "{name}" WHERE NOT keep"""
        for place, name in enumerate(deciders)
    )
    query = f"""
        WITH dropped AS (
            SELECT * FROM ({dropped}) QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY place) = 1
        ),
        files AS (SELECT image_id, list(location ORDER BY location) AS locations FROM ingest GROUP BY image_id)
        SELECT image_id, locations, stage, reason, detail, keeper FROM dropped JOIN files USING (image_id)
        UNION ALL
        SELECT
            image_id, list(location ORDER BY location), 'ingest', error,
            CASE WHEN detail IS NOT NULL THEN json_object('error', detail) END, NULL
        FROM ingest ANTI JOIN "{deciders[0]}" USING (image_id)
        WHERE location NOT IN (SELECT origin FROM posts)
        GROUP BY image_id, error, detail, CASE WHEN image_id IS NULL THEN location END
        UNION ALL
        SELECT NULL, [location], 'metadata', error, json_object('error', detail), NULL
        FROM metadata WHERE error IS NOT NULL
        ORDER BY image_id NULLS FIRST, locations
    """
    with pq.ParquetWriter(file, REJECTS) as writer:
        for group in row_groups(read(connection, query), REJECTS):
            writer.write_table(group)
