"""`curate filter --dry-run`: what other settings of the stage `filter` would drop, from the tables of the last run."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from curate.filter import FilterSettings, query
from curate.work import Work
from shared.errors import UserError
from shared.pipelines import Pipeline
from shared.progress import console
from shared.stages import connect

Counts = Counter[tuple[str | None, str | None]]
"""Pictures by their reason under the current settings and under others; None: kept."""


def show(counts: Counts) -> None:
    """Print what is dropped for which reason, and what changes."""
    table = Table("reason", "dropped", "share", "newly dropped", "newly kept")
    for column in table.columns[1:]:
        column.justify = "right"
    dropped = Counter({reason: 0 for pair in counts for reason in pair})
    for (_, reason), count in counts.items():
        dropped[reason] += count
    kept, total = dropped.pop(None, 0), counts.total()
    for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
        changes = (f"{counts[None, reason]:,}", f"{counts[reason, None]:,}")
        table.add_row(reason, f"{count:,}", f"{count / total:.1%}", *changes)
    console.print(table)
    before = sum(count for (reason, _), count in counts.items() if reason is None)
    console.print(
        f"{kept:,} of {total:,} pictures would be kept; under the current settings {before:,}", soft_wrap=True
    )


def compare(work: Work, current: Pipeline, other: Pipeline) -> Counts:
    """What the filters of two pipelines, otherwise the same, decide about the pictures of the last run.

    Nothing is written to the work directory. Raises UserError where a stage before the filter has not finished.
    """
    names = [spec.name for spec in current.stages]
    before = current.stages[: names.index("filter")]
    tables = _tables(work, [spec.name for spec in before])
    deciders = [spec.name for spec in before if spec.stage.decides]
    now, then = (query(_settings(pipeline), tables) for pipeline in (current, other))
    with TemporaryDirectory() as folder, connect(tables, deciders, Path(folder)) as connection:
        rows = connection.execute(f"""
            SELECT now.reason, later.reason, count(*) FROM ({now}) AS now JOIN ({then}) AS later USING (image_id)
            GROUP BY ALL
        """).fetchall()
    return Counter({(reason, other_reason): count for reason, other_reason, count in rows})


def _tables(work: Work, names: list[str]) -> dict[str, Path]:
    """Folders of the finished tables of stages."""
    recorded = work.record().tables
    for name in names:
        if name not in recorded:
            raise UserError(f"{work.folder}: the stage {name} has not finished; `curate run` goes on where it stopped")
    return {name: work.folder / recorded[name] for name in names}


def _settings(pipeline: Pipeline) -> FilterSettings:
    (settings,) = (spec.settings for spec in pipeline.stages if spec.name == "filter")
    if not isinstance(settings, FilterSettings):
        raise UserError(f"{pipeline.name}: its stage filter is another than curate.filter")
    return settings
