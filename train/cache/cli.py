"""The command `cache-latents`."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer
import yaml

from shared.errors import UserError
from shared.pipelines import load
from train.cache.settings import CacheSettings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Encode curated pictures and captions once, for training.",
)

Work = Annotated[Path, typer.Option(help="The work directory of `curate run`.")]
Model = Annotated[str, typer.Option(help="A Lumina 2 pipeline: a folder in the diffusers layout, or a hub name.")]
Source = Annotated[Path | None, typer.Option(help="Where the pictures lie, if they were moved since `curate run`.")]
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
    settings = cast(CacheSettings, load(work / "pipeline.yaml", overrides=overrides).sections["cache"])
    pictures = source or Path(yaml.safe_load((work / "pipeline.yaml").read_text(encoding="utf-8"))["source"])
    if not pictures.is_dir():
        raise UserError(f"{pictures}: the pictures are not there any more; say where they are with --source")
    from train.cache.hub import model_folder
    from train.cache.run import cache, report

    report(cache(work, pictures, model_folder(model), settings))


@app.command()
def verify(work: Work = Path("work")) -> None:
    """Read every tensor of the finished cache and check its CRC."""
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
