"""The command `train`."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer
import yaml

from shared.errors import UserError
from shared.pipelines import load
from train.export import Dtype, Format
from train.settings import TrainSettings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Finetune Lumina-Image-2.0 from a tensor cache.",
)

Work = Annotated[Path, typer.Option(help="The work directory of `curate run` and `cache-latents`.")]
Model = Annotated[str, typer.Option(help="A Lumina 2 pipeline: a folder in the diffusers layout, or a hub name.")]
Name = Annotated[str, typer.Option(help="Name of the run: its folder is WORK/runs/NAME.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, for example train.steps=100."),
]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    work: Work = Path("work"),
    model: Model = "Alpha-VLLM/Lumina-Image-2.0",
    name: Name = "default",
    overrides: Set = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
) -> None:
    """Train, or go on where the run of this name stopped."""
    if context.invoked_subcommand is not None:
        return
    settings = cast(TrainSettings, load(work / "pipeline.yaml", overrides=overrides).sections["train"])
    if dry_run:
        typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    from train.run import start

    start(work, model, name, settings)


@app.command()
def audit(work: Work = Path("work"), name: Name = "default") -> None:
    """Prove from the receipts of a run that it saw the samples of its plan."""
    from train.audit import audit as replay

    found = replay(work, name)
    for problem in found.problems:
        typer.echo(problem)
    if found.problems:
        typer.echo(f"{len(found.problems):,} of {found.steps:,} steps are not as planned")
        raise typer.Exit(1)
    typer.echo(
        f"{found.steps:,} steps, {found.samples:,} samples, as planned: "
        f"every picture was seen {found.fewest:,} to {found.most:,} times"
    )


@app.command()
def plot(
    work: Work = Path("work"),
    names: Annotated[
        list[str], typer.Option("--name", help="Name of a run; several are drawn together.", show_default="default")
    ] = [],  # noqa: B006 - typer copies it
    out: Annotated[Path | None, typer.Option(help="A PNG; by default plot.png in the folder of the first run.")] = None,
) -> None:
    """Draw losses, gradients, speed and memory of runs over the samples they have seen."""
    from train.plot import plot as draw

    runs = [work / "runs" / name for name in names or ["default"]]
    typer.echo(f"written: {draw(runs, out or runs[0] / 'plot.png')}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder WORK/runs/NAME/checkpoints/STEP.")],
    out: Annotated[
        Path, typer.Argument(help="What to write: for diffusers a folder, for ComfyUI a .safetensors file.")
    ],
    model: Model = "Alpha-VLLM/Lumina-Image-2.0",
    raw: Annotated[bool, typer.Option("--raw", help="Take the raw weights, not their moving average.")] = False,
    form: Annotated[Format, typer.Option("--format", help="Who is to load it. Only adapters: -lora.")] = "diffusers",
    dtype: Annotated[Dtype, typer.Option(help="Of the numbers.")] = "bfloat16",
) -> None:
    """Write weights that diffusers or ComfyUI loads. Adapters are added to the model, or written alone."""
    from train.export import write

    write(checkpoint, out, model, form=form, dtype=dtype, raw=raw)
    typer.echo(f"written: {out}")


def main() -> None:
    """Entry point: errors of the user are one message, not a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
