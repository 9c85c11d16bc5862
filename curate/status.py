"""`curate status`: what each stage kept and dropped, and why."""

import time
from collections.abc import Iterator

import duckdb
from rich.table import Table

from curate.work import Record, Work
from shared.pipelines import StageSpec, load
from shared.progress import clock, console
from shared.stages import connect, sql
from shared.worklist import all_shards

UNITS = {"ingest": "files", "posts": "rows", "metadata": "files"}
"""What stages count that do not count pictures."""


def show(work: Work) -> None:
    """Print the stages of a work directory and its totals."""
    work.saved()
    stages = load(work.pipeline).stages
    record = work.record()
    folders = {name: work.folder / folder for name, folder in record.tables.items()}
    table = Table("stage", "looked at", "kept", "dropped", "reasons")
    for column in table.columns[1:4]:
        column.justify = "right"
    with connect(folders, [], work.folder) as connection:
        for spec in stages:
            table.add_row(*(_row(connection, spec) if spec.name in folders else (spec.name, "", "", "", "not run yet")))
        (odd,) = connection.execute("SELECT count(metadata_error) FROM ingest").fetchall()[0] if folders else (0,)
    console.print(table)
    if odd:
        console.print(
            f"{odd:,} files have metadata that could not be used; the column metadata_error says why", soft_wrap=True
        )
    for line in _state(work, record):
        console.print(line, soft_wrap=True)


def _state(work: Work, record: Record) -> Iterator[str]:
    """What is going on, with rate and time left; else the totals of what is finished."""
    running = work.running()
    if running is None or not work.busy():
        yield _totals(work) if record.published else "unfinished: run `curate run` again to go on"
        return
    stage, folder, since = running
    now = time.time()
    yield f"{stage} has been at work for {clock(now - since)}"
    shards = all_shards(folder)
    if not shards:
        return
    times = [(shard.weight, shard.part.stat().st_mtime) for shard in shards if shard.part.exists()]
    total, done = sum(shard.weight for shard in shards), sum(weight for weight, _ in times)
    rate = sum(weight for weight, time in times if time > since) / max(now - since, 1e-9)
    left = clock((total - done) / rate) if rate else "-:--:--"
    yield f"{len(times):,} of {len(shards):,} shards are finished, {done / total:.1%} of the work; {left} left"


def _row(connection: duckdb.DuckDBPyConnection, spec: StageSpec) -> tuple[str, ...]:
    """Cells of one stage."""
    measure = spec.name == "ingest"
    reason = "error" if measure else "reason" if spec.stage.decides else "NULL"
    counts = dict(connection.execute(f'SELECT {reason}, count(*) FROM "{spec.name}" GROUP BY 1').fetchall())
    kept = counts.pop(None, 0)
    dropped = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    reasons = "\n".join(f"{count:,} {word}" for word, count in ranked)
    unit = UNITS.get(spec.name, "pictures")
    return spec.name, f"{kept + dropped:,} {unit}", f"{kept:,}", f"{dropped:,}" if dropped else "", reasons


def _totals(work: Work) -> str:
    count = "SELECT count(*), coalesce(sum(len(locations)), 0)::BIGINT FROM read_parquet(?)"
    pictures, kept = duckdb.execute(count, [f"{sql(work.curated)}/part-*.parquet"]).fetchall()[0]
    _, rejected = duckdb.execute(count, [sql(work.rejects)]).fetchall()[0]
    files = f"{kept + rejected:,} files = {kept:,} in {work.curated} ({pictures:,} pictures)"
    return f"{files} + {rejected:,} in {work.rejects}"
