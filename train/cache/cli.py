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

MODEL = "Alpha-VLLM/Lumina-Image-2.0"
PICTURES_PER_SECOND = 50.0
"""Pictures of 1024 x 1024 px that an H100 encodes with FLUX's autoencoder, 4.88 TFLOP each. Others by their pixels."""
CAPTIONS_PER_SECOND = 1_200.0
"""Captions of 100 tokens that an H100 encodes with Gemma 2 2B. Others by their tokens."""

Work = Annotated[Path, typer.Option(help="The work directory of `curate run`.")]
Model = Annotated[str, typer.Option(help="A Lumina 2 pipeline: a folder in the diffusers layout, or a hub name.")]
Source = Annotated[str | None, typer.Option(help="Where the pictures lie, if they were moved since `curate run`.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, for example 'cache.areas=[512,1024]'."),
]


@app.callback(invoke_without_command=True)
def cache_latents(
    context: typer.Context,
    work: Work = Path("work"),
    model: Model = MODEL,
    source: Source = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode; by default one per core.")] = None,
) -> None:
    """Encode what is new, then write the manifest."""
    if context.invoked_subcommand is not None:
        return
    settings, pictures = _settings(work, overrides), _pictures(work, source)
    from train.cache.hub import model_folder
    from train.cache.run import cache, report

    if result := cache(work, pictures, model_folder(model), settings, workers=workers):
        report(result)


@app.command()
def estimate(
    work: Work = Path("work"),
    model: Model = MODEL,
    overrides: Set = [],  # noqa: B006 - typer copies it
    pictures_per_second: Annotated[
        float, typer.Option(min=0.001, help="Of 1024 x 1024 px, by one GPU.")
    ] = PICTURES_PER_SECOND,
    captions_per_second: Annotated[
        float, typer.Option(min=0.001, help="Of 100 tokens, by one GPU.")
    ] = CAPTIONS_PER_SECOND,
) -> None:
    """Say how large the cache becomes and how long a GPU needs for it, before starting."""
    from train.cache import estimate as estimates

    lines = estimates.estimate(work, model, _settings(work, overrides), pictures_per_second, captions_per_second)
    estimates.show(lines, pictures_per_second, captions_per_second)


@app.command()
def finalize(
    work: Work = Path("work"),
    model: Annotated[str | None, typer.Option(help="The model, where shards of several lie side by side.")] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
) -> None:
    """Write the manifest for what is curated now, from the shards that are there, without encoding."""
    from train.cache.finalize import finalize as write
    from train.cache.hub import model_folder

    identity, missing = write(work, _settings(work, overrides), model_folder(model) if model else None)
    for line in missing:
        typer.echo(line, err=True)
    typer.echo(f"identity {identity[:12]}")


@app.command()
def verify(
    work: Work = Path("work"),
    reencode: Annotated[int, typer.Option(min=0, help="Encode so many pictures and captions again.")] = 0,
    model: Model = MODEL,
    source: Source = None,
) -> None:
    """Check every byte of the finished cache and count every row; exit code 1 where something is wrong."""
    from train.cache.error import told
    from train.cache.manifest import read_about
    from train.cache.verify import verify as check

    problems = check(work)
    if reencode:
        from train.cache.hub import model_folder
        from train.cache.reencode import reencoded

        problems += reencoded(work, _pictures(work, source), model_folder(model), reencode)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        typer.echo(f"{len(problems)} problems; delete the shards named and run `cache-latents`", err=True)
        raise typer.Exit(1)
    typer.echo("\n".join(["every tensor is what was written", *told(read_about(work).get("error", {}))]))


@app.command()
def inspect(
    image: Annotated[str, typer.Argument(help="An image id or the beginning of one, or an index.")],
    work: Work = Path("work"),
    model: Model = MODEL,
    source: Source = None,
    area: Annotated[int | None, typer.Option(help="Of several areas, which; by default the largest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the PNG goes; by default ID.png in this folder.")] = None,
) -> None:
    """Draw one picture: its source, its decoded latent and its captions."""
    from train.cache.hub import model_folder
    from train.cache.inspect import inspect as look
    from train.cache.inspect import write

    found = look(work, _pictures(work, source), model_folder(model), image, area)
    path = out or Path(f"{found.image_id[:12]}.png")
    write(found, path)
    typer.echo(str(path))


def _settings(work: Path, overrides: list[str]) -> CacheSettings:
    file = work / "pipeline.yaml"
    if not file.exists():
        raise UserError(f"{work}: there is no curated dataset; run `curate run SOURCE --work {work}` first")
    return cast(CacheSettings, load(file, overrides=overrides).sections["cache"])


def _pictures(work: Path, source: str | None) -> Corpus:
    pictures = Corpus(source or pictures_of(work))
    if not pictures.exists():
        raise UserError(f"{pictures.root}: the pictures are not there any more; say where they are with --source")
    return pictures


def main() -> None:
    """Entry point: errors of the user are one message, not a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
