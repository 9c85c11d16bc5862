"""The command `curate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from shared.errors import UserError
from shared.pipelines import Pipeline, default_file, load

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make a dataset of a corpus of pictures.",
)

WorkFolder = Annotated[Path, typer.Option("--work", help="Where everything is written and found again.")]


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures and tars with metadata beside them, here or in an object store (s3://...); "
            "a list of URLs (.csv, .jsonl, .parquet); or datasets:NAME, a dataset of the hub or in a folder."
        ),
    ],
    pipeline: Annotated[str, typer.Option(help="Name of a pipeline in the file of pipelines.")] = "booru",
    work: WorkFolder = Path("work"),
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, for example near.distance=2."),
    ] = [],  # noqa: B006 - typer copies it
    pipelines: Annotated[
        Path | None,
        typer.Option(help="The file of pipelines. Default: ./pipelines.yaml, else the one shipped with the project."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where pictures are read: local (this machine) or ray (a cluster).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many read pictures at once. Default: one per CPU core.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved pipeline and stop.")] = False,
) -> None:
    """Bring a dataset up to date with its source: new and changed files alone are read."""
    resolved = load(pipelines or default_file(), pipeline, overrides)
    if dry_run:
        typer.echo(yaml.safe_dump(resolved.document(), sort_keys=False, allow_unicode=True), nl=False)
        return
    _start(source, resolved, work, engine, workers)


@app.command(name="filter")
def filter_again(
    work: WorkFolder = Path("work"),
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the filter: filter.min_side=512."),
    ] = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be dropped, and why, and write nothing.")
    ] = False,
) -> None:
    """Run again what ran here last, under other settings of the filter; or show what they would drop."""
    from curate.preview import compare, show
    from curate.work import Work

    for override in overrides:
        if not override.startswith("filter."):
            raise UserError(f"--set {override}: write it as filter.setting=value; `curate run` sets other stages")
    directory = Work(work)
    source = directory.saved()["source"]
    current, other = load(directory.pipeline), load(directory.pipeline, overrides=overrides)
    if dry_run:
        show(compare(directory, current, other))
        return
    _start(source, other, work)


@app.command()
def status(work: WorkFolder = Path("work")) -> None:
    """Show what each stage kept and dropped, and why."""
    from curate.status import show
    from curate.work import Work

    show(Work(work))


@app.command()
def tags(
    work: WorkFolder = Path("work"),
    beside: Annotated[
        str | None, typer.Option("--with", metavar="NAME", help="Show which tags stand beside this one.")
    ] = None,
    rare: Annotated[int | None, typer.Option(min=1, help="Show the characters of at most so many pictures.")] = None,
) -> None:
    """Show which tags the pictures that are kept have, before and after they are normalised."""
    from curate.tags import show
    from curate.work import Work

    show(Work(work), beside, rare)


def _start(source: str, pipeline: Pipeline, work: Path, engine: str = "local", workers: int | None = None) -> None:
    """Run, and show what came out."""
    from curate.run import run
    from curate.status import show
    from curate.work import Work
    from shared.engine import open_engine

    directory = Work(work)
    with open_engine(engine, workers) as opened:
        run(source, pipeline, directory, opened)
    show(directory)


def main() -> None:
    """Entry point: errors of the user are one message, not a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
