"""`curate status`: what each stage kept and dropped, and why."""

import duckdb
from rich.table import Table

from curate.work import Work
from shared.pipelines import StageSpec, load
from shared.progress import console
from shared.stages import connect, sql


def show(work: Work) -> None:
    """Print the stages of a work directory and its totals."""
    work.saved()
    stages = load(work.pipeline).stages
    record = work.record()
    folders = {name: work.folder / folder for name, folder in record.tables.items()}
    table = Table("stage", "looked at", "kept", "dropped", "reasons")
    for column in table.columns[1:4]:
        column.justify = "right"
    with connect(folders, []) as connection:
        for spec in stages:
            table.add_row(*(_row(connection, spec) if spec.name in folders else (spec.name, "", "", "", "not run yet")))
        (odd,) = connection.execute("SELECT count(metadata_error) FROM ingest").fetchall()[0] if folders else (0,)
    console.print(table)
    if odd:
        console.print(
            f"{odd:,} files have metadata that could not be used; the column metadata_error says why", soft_wrap=True
        )
    console.print(_totals(work) if record.published else "unfinished: run `curate run` again to go on", soft_wrap=True)


def _row(connection: duckdb.DuckDBPyConnection, spec: StageSpec) -> tuple[str, ...]:
    """Cells of one stage. `ingest` counts files; the stages after it count pictures."""
    measure = spec.name == "ingest"
    reason = "error" if measure else "reason" if spec.stage.decides else "NULL"
    counts = dict(connection.execute(f"SELECT {reason}, count(*) FROM {spec.name} GROUP BY 1").fetchall())
    kept = counts.pop(None, 0)
    dropped = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    reasons = "\n".join(f"{count:,} {word}" for word, count in ranked)
    unit = "files" if measure else "pictures"
    return spec.name, f"{kept + dropped:,} {unit}", f"{kept:,}", f"{dropped:,}" if dropped else "", reasons


def _totals(work: Work) -> str:
    count = "SELECT count(*), coalesce(sum(len(locations)), 0)::BIGINT FROM read_parquet(?)"
    pictures, kept = duckdb.execute(count, [f"{sql(work.curated)}/part-*.parquet"]).fetchall()[0]
    _, rejected = duckdb.execute(count, [sql(work.rejects)]).fetchall()[0]
    files = f"{kept + rejected:,} files = {kept:,} in {work.curated} ({pictures:,} pictures)"
    return f"{files} + {rejected:,} in {work.rejects}"
