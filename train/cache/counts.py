"""What `cache-latents verify` counts: work lists against shards, those against the manifest, it against `curated`."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared.stages import sql
from shared.tensors import description
from shared.worklist import all_shards
from train.cache.manifest import REJECTS, CacheLayout

AGAIN = "run `cache-latents` again"

QUERIES = (
    (
        f"{{cache}}/{{}} row {{}}, image {{}}: the manifest says that image {{}} lies there; {AGAIN}",
        "SELECT file, row, r.image_id, l.image_id FROM latents l JOIN latent_rows r USING (file, row)"
        " WHERE l.image_id != r.image_id ORDER BY ALL",
    ),
    (
        f"{{work}}/curated: image {{}} is neither in the manifest nor in rejects.parquet; {AGAIN}",
        "SELECT image_id FROM curated ANTI JOIN latents USING (image_id) ANTI JOIN rejects USING (image_id) ORDER BY 1",
    ),
    (
        f"{{cache}}/{{}} row {{}}, image {{}}: is in the manifest, but not in curated any more; {AGAIN}",
        "SELECT file, row, image_id FROM latents ANTI JOIN curated USING (image_id) ORDER BY ALL",
    ),
    (
        f"{{work}}/curated: image {{}}, caption {{}}: is not in the manifest; {AGAIN}",
        "SELECT image_id, variant FROM captions SEMI JOIN latents USING (image_id)"
        " ANTI JOIN texts USING (image_id, variant) ORDER BY ALL",
    ),
    (
        f"{{cache}}/{{}} row {{}}, image {{}}: is of another text than caption {{}} has in curated now; {AGAIN}",
        "SELECT file, row, t.image_id, t.variant FROM texts t JOIN text_rows r USING (file, row)"
        " LEFT JOIN captions c ON (t.image_id, t.variant) = (c.image_id, c.variant)"
        " WHERE (r.image_id, r.caption_sha) IS DISTINCT FROM (c.image_id, c.sha) ORDER BY ALL",
    ),
)
"""A line for every row of a query."""


NONE = "(SELECT '' AS image_id, '' AS caption_sha, '' AS filename, 0 AS file_row_number WHERE false)"


def miscounts(work: Path, about: dict[str, Any], tables: dict[str, pa.Table], broken: Set[str]) -> list[str]:
    """Rows that are missing, or too many, one readable line each. Nothing is counted of `broken` shards."""
    layout = CacheLayout(work)
    problems = list(miscounted_parts(layout, about, broken))
    written = {"latents": about["images"] * len(about["latents"]["areas"]), "text": about["captions"]}
    for name, count in written.items():
        if len(tables[name]) != count:
            problems.append(f"{layout.manifest}/{name}.parquet: {len(tables[name])} rows where {count} were written")
    if not any((work / "curated").glob("part-*.parquet")):
        return [*problems, f"{work}/curated: is not there: the cache cannot be counted against it"]
    with duckdb.connect() as connection:
        _views(connection, work, layout, tables, broken)
        for line, query in QUERIES:
            rows = connection.execute(query).fetchall()
            problems += [line.format(*row, cache=layout.root, work=work) for row in rows]
    return problems


def miscounted_parts(layout: CacheLayout, about: dict[str, Any], broken: Set[str]) -> Iterator[str]:
    """What is wrong with the parts of the work lists: one for every shard, a row or a reason for every item."""
    for folder in layout.lists(about["latents"], about["text"]):
        try:
            shards = all_shards(folder)
        except (OSError, ValueError, TypeError, pa.ArrowException):
            continue  # A damaged list, which is told already.
        for shard in shards:
            if not shard.part.exists():
                yield f"{shard.part}: missing: {shard.rows} items of {shard.todo.name} are not encoded; {AGAIN}"
            elif str(shard.part.relative_to(layout.root)) not in broken:
                rows = pq.read_metadata(shard.part).num_rows + len(description(shard.part).get("rejects", []))
                if rows != shard.rows:
                    yield f"{shard.part}: {rows} rows and rejects where its list has {shard.rows} items"
        for part in sorted({*folder.glob("part-*.parquet")} - {shard.part for shard in shards}):
            yield f"{part}: is in no list of work"


def _views(
    connection: duckdb.DuckDBPyConnection,
    work: Path,
    layout: CacheLayout,
    tables: dict[str, pa.Table],
    broken: Set[str],
) -> None:
    """Tables for QUERIES: what is curated, what the manifest says, and what the sound shards say of themselves."""
    connection.execute(f"CREATE VIEW curated AS SELECT * FROM read_parquet('{sql(work / 'curated')}/part-*.parquet')")
    connection.execute(
        "CREATE VIEW captions AS SELECT image_id, variant, sha256(text) AS sha"
        " FROM (SELECT image_id, unnest(captions, recursive := true) FROM curated)"
    )
    images = tables["latents"]["image_id"].take(tables["text"]["image"])
    try:
        rejects = pq.read_table(layout.rejects, columns=["image_id"])
    except (OSError, ValueError, pa.ArrowException):
        rejects = REJECTS.empty_table()  # Told already.
    connection.register("rejects", rejects)
    connection.register("latents", tables["latents"].select(["image_id", "file", "row"]))
    connection.register("texts", tables["text"].select(["variant", "file", "row"]).append_column("image_id", images))
    for view, table, columns in (
        ("latent_rows", "latents", "image_id"),
        ("text_rows", "text", "image_id, caption_sha"),
    ):
        files = set(tables[table]["file"].unique().to_pylist()) - broken
        names = ", ".join(f"'{sql(layout.root / file)}'" for file in sorted(files))
        start = len(f"{layout.root}/") + 1
        rows = f"read_parquet([{names}], filename = true, file_row_number = true)" if names else NONE
        place = f"substr(filename, {start}) AS file, file_row_number AS row"
        connection.execute(f"CREATE VIEW {view} AS SELECT {columns}, {place} FROM {rows}")
