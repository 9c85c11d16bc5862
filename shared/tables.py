"""Writing tables: folders of Parquet parts whose bytes depend on their rows alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 8192
PART_ROWS = 8 * GROUP_ROWS


def write_query(connection: duckdb.DuckDBPyConnection, query: str, folder: Path, schema: pa.Schema) -> None:
    """Write the rows of a query, which must order them, as part-00000.parquet and so on."""
    write_parts(read(connection, query), folder, schema)


def read(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """The rows of a query, as they come."""
    return connection.sql(query).to_arrow_reader(GROUP_ROWS)


def write_parts(batches: Iterable[pa.RecordBatch], folder: Path, schema: pa.Schema) -> None:
    """Write rows as part-00000.parquet and so on, PART_ROWS each; no rows give one empty part."""
    writer = pq.ParquetWriter(folder / "part-00000.parquet", schema)
    try:
        rows = 0
        for group in row_groups(batches, schema):
            if rows and rows % PART_ROWS == 0:
                writer.close()
                writer = pq.ParquetWriter(folder / f"part-{rows // PART_ROWS:05}.parquet", schema)
            writer.write_table(group)
            rows += len(group)
    finally:
        writer.close()


def row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of GROUP_ROWS rows, however they came; columns as `schema` has them."""
    waiting = schema.empty_table()
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        waiting = pa.concat_tables([waiting, rows])
        while len(waiting) >= GROUP_ROWS:
            yield waiting.slice(0, GROUP_ROWS).combine_chunks()
            waiting = waiting.slice(GROUP_ROWS)
    if len(waiting):
        yield waiting.combine_chunks()
