"""The command `train`."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer
import yaml

from shared.errors import UserError
from shared.pipelines import default_file, load
from train.cache.settings import CacheSettings
from train.peak import SHARE_OF_PEAK
from train.settings import DrawSettings, ExportDtype, ExportFormat, TrainSettings

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
DRAW = DrawSettings()


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
    sections = load(work / "pipeline.yaml", overrides=overrides).sections
    settings = cast(TrainSettings, sections["train"])
    if dry_run:
        typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    from train.run import start

    start(work, model, name, settings, cast(CacheSettings, sections["cache"]))


@app.command()
def estimate(
    work: Work = Path("work"),
    model: Model = "Alpha-VLLM/Lumina-Image-2.0",
    pipeline: Annotated[
        str | None, typer.Option(help="A pipeline of pipelines.yaml, to ask before there is a work directory.")
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    gpus: Annotated[int, typer.Option(min=1, help="How many H100 there are.")] = 8,
    share_of_peak: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of their 989 TFLOP/s, what training reaches.")
    ] = SHARE_OF_PEAK,
) -> None:
    """Say what a run takes before it begins: operations, GPU hours, memory."""
    from train.estimate import lines_of, show

    found = load(default_file(), pipeline, overrides) if pipeline else load(work / "pipeline.yaml", overrides=overrides)
    settings, cache = cast(TrainSettings, found.sections["train"]), cast(CacheSettings, found.sections["cache"])
    show(*lines_of(None if pipeline else work, settings, cache, model), settings, gpus, share_of_peak)


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
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Who is to load it. Only adapters: -lora.")
    ] = "diffusers",
    dtype: Annotated[ExportDtype, typer.Option(help="Of the numbers.")] = "bfloat16",
) -> None:
    """Write weights that diffusers or ComfyUI loads. Adapters are added to the model, or written alone."""
    from train.export import write

    write(checkpoint, out, model, form=form, dtype=dtype, raw=raw)
    typer.echo(f"written: {out}")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--prompts", help="A file of further prompts, one on each line.", exists=True, dir_okay=False),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint of a run, a transformer in the diffusers layout, a .safetensors file in any naming, "
            "an adapter (LoRA), or a hub name. Default: the model's own transformer."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a run's checkpoint, take the raw weights.")] = False,
    model: Model = "Alpha-VLLM/Lumina-Image-2.0",
    work: Annotated[
        Path | None,
        typer.Option(
            help="A work directory: prompts are encoded as the captions of its cache, and their embeddings kept. "
            "Default: as by the default settings of `cache-latents`, and forgotten."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("samples"),
    sizes: Annotated[
        list[str], typer.Option("--size", metavar="WIDTHxHEIGHT", help="In pixels; may be given several times.")
    ] = ["1024x1024"],  # noqa: B006 - typer copies it
    count: Annotated[int, typer.Option(min=1, help="Pictures of each prompt and size.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first picture; every further one has the next.")] = DRAW.seed,
    steps: Annotated[int, typer.Option(min=1, help="Of the Euler sampler.")] = DRAW.steps,
    shift: Annotated[float, typer.Option(min=0.01, help="Of its times towards noise.")] = DRAW.shift,
    guidance: Annotated[float, typer.Option(min=1, help="Scale of classifier-free guidance.")] = DRAW.guidance,
    guidance_until: Annotated[
        float, typer.Option(min=0, max=1, help="Time (0 noise, 1 data) from which on the prompt alone is followed.")
    ] = DRAW.guidance_until,
    negative: Annotated[str, typer.Option(help="What to guide away from. Default: the empty caption.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Write one more PNG with all pictures.")] = False,
) -> None:
    """Draw pictures of prompts with any checkpoint, as PNG files that say how they were made."""
    from train.draw import draw

    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    prompts = [*(prompts or []), *filter(str.strip, lines)]
    if not prompts:
        raise UserError("nothing to draw: give prompts, or a file of them as --prompts FILE")
    how = {"steps": steps, "shift": shift, "guidance": guidance, "guidance_until": guidance_until, "seed": seed}
    written = draw(
        prompts,
        out,
        model,
        DrawSettings.model_validate(how),
        checkpoint=checkpoint,
        raw=raw,
        work=work,
        sizes=sizes,
        count=count,
        negative=negative,
        grid=grid,
    )
    typer.echo(f"drawn: {written[0]} to {written[-1]}")


def main() -> None:
    """Entry point: errors of the user are one message, not a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
