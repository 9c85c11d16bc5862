"""The command `cache-latents`."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from shared.corpus import Corpus
from shared.errors import UserError
from shared.pipelines import load, pictures_of
from train.cache.settings import CacheSettings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Encode curated pictures and captions once, for training.",
)

Work = Annotated[Path, typer.Option(help="The work directory of `curate run`.")]
Model = Annotated[str, typer.Option(help="A Lumina 2 pipeline: a folder in the diffusers layout, or a hub name.")]
Source = Annotated[str | None, typer.Option(help="Where the pictures lie, if they were moved since `curate run`.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, for example cache.area=512.")
]


@app.callback(invoke_without_command=True)
def cache_latents(
    context: typer.Context,
    work: Work = Path("work"),
    model: Model = "Alpha-VLLM/Lumina-Image-2.0",
    source: Source = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
) -> None:
    """Encode what is new, then write the manifest."""
    if context.invoked_subcommand is not None:
        return
    file = work / "pipeline.yaml"
    if not file.exists():
        raise UserError(f"{work}: there is no curated dataset; run `curate run SOURCE --work {work}` first")
    settings = cast(CacheSettings, load(file, overrides=overrides).sections["cache"])
    pictures = Corpus(source or pictures_of(work))
    if not pictures.exists():
        raise UserError(f"{pictures.root}: the pictures are not there any more; say where they are with --source")
    from train.cache.hub import model_folder
    from train.cache.run import cache, report

    report(cache(work, pictures, model_folder(model), settings))


@app.command()
def finalize(work: Work = Path("work")) -> None:
    """Write the manifest for what is curated now, from the shards that are there."""
    from train.cache.manifest import finalise, read_about

    about = read_about(work)
    typer.echo(f"identity {finalise(work, about['latents'], about['text'])[:12]}")


@app.command()
def verify(work: Work = Path("work")) -> None:
    """Read every tensor of the finished cache; check its CRC and what the manifest says of it."""
    from train.cache.verify import verify as check

    problems = check(work)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise UserError(f"{len(problems)} problems in {work}/cache; delete the files named and run `cache-latents`")
    typer.echo("every tensor is what was written")


def main() -> None:
    """Entry point: errors of the user are one message, not a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
