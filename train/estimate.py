"""`train estimate`: what a run takes before it begins, by arithmetic: operations, hours, memory, bytes on the disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.table import Table

from shared.progress import console
from train.cache.manifest import CacheLayout
from train.cache.reader import CacheReader
from train.cache.settings import CacheSettings
from train.data.draws import draw
from train.data.loader import Shape, sample_shapes, shapes_of
from train.data.phases import Phase, ends_of, plan_phases
from train.memory import Counts, moment_bytes, state_bytes
from train.model.config import CONFIG_FILE, DiTConfig
from train.model.dit import Lumina2DiT
from train.model.freeze import freeze
from train.model.lora import add_lora
from train.model.recompute import kept_bytes
from train.peak import BF16_PEAK
from train.settings import Recompute, TrainSettings

RELEASED = DiTConfig(cap_feat_dim=2304)
"""Lumina-Image-2.0."""
TEXT, PIXELS = 100, 16
"""Without a cache: tokens of a caption, and the side of an image token in pixels."""
STEPS = 4
"""Of each phase, evenly spread: their samples stand for all."""


@dataclass(frozen=True)
class Line:
    """A phase."""

    first: int
    steps: int
    areas: Sequence[int]
    samples: int
    pictures: int | None
    """Of the cache that it sees; None: there is no cache yet."""
    tokens: float
    """Text and image tokens of a sample, those of the second loss too."""
    flops: float
    """Of training on all samples."""

    def hours(self, speed: float) -> float:
        """Of a GPU that computes so many FLOP/s."""
        return self.flops / speed / 3600


def lines_of(
    work: Path | None, settings: TrainSettings, cache: CacheSettings, model: str
) -> tuple[list[Line], DiTConfig]:
    """A line for each phase: by the cache of a work directory, or without one by assumption; and the model's shape."""
    config = config_of(model)
    if work is None or not CacheLayout(work).manifest.exists():
        return assumed(settings, cache, config), config
    return from_cache(work, settings, config), config


def config_of(model: str) -> DiTConfig:
    """The shape of the transformer of a model folder; that of the released model for a name of the hub."""
    folder = Path(model) / "transformer"
    return DiTConfig.from_folder(folder) if (folder / CONFIG_FILE).exists() else RELEASED


def from_cache(work: Path, settings: TrainSettings, config: DiTConfig) -> list[Line]:
    """A line for each phase, by steps of the plan itself. Raises UserError as `train` does."""
    reader = CacheReader(work)
    phases = plan_phases(work, reader, settings).phases
    return [
        _line(
            range(phase.first, end),
            [reader.area for reader in phase.readers],
            _planned(phase, end, settings),
            settings,
            config,
            len(phase.pictures),
        )
        for phase, end in zip(phases, ends_of([phase.first for phase in phases], settings.steps), strict=True)
        if phase.first < end
    ]


def assumed(settings: TrainSettings, cache: CacheSettings, config: DiTConfig) -> list[Line]:
    """A line for each phase without a cache: pictures are squares of their areas, captions have `TEXT` tokens."""
    lines = []
    ends = ends_of([phase.first for phase in settings.phases], settings.steps)
    for phase, end in zip(settings.phases, ends, strict=True):
        areas = phase.areas or cache.areas[-1:]
        shapes = [sample_shapes(TEXT, (area // PIXELS, area // PIXELS), settings) for area in areas]
        if phase.first < end:
            lines.append(_line(range(phase.first, end), areas, shapes, settings, config))
    return lines


def _planned(phase: Phase, end: int, settings: TrainSettings) -> list[list[Shape]]:
    steps = np.unique(np.linspace(phase.first, end - 1, STEPS).astype(int))
    return [shapes for step in steps for shapes in shapes_of(draw(phase, settings, int(step)), settings)]


def _line(
    steps: range,
    areas: Sequence[int],
    shapes: Sequence[Sequence[Shape]],
    settings: TrainSettings,
    config: DiTConfig,
    pictures: int | None = None,
) -> Line:
    samples = len(steps) * settings.batch
    return Line(
        first=steps.start,
        steps=len(steps),
        areas=areas,
        samples=samples,
        pictures=pictures,
        tokens=sum(shape.tokens for sample in shapes for shape in sample) / len(shapes),
        flops=sum(shape.flops(config) for sample in shapes for shape in sample) / len(shapes) * samples,
    )


def counts(settings: TrainSettings, config: DiTConfig) -> Counts:
    """Of the weights, none of which is made."""
    with torch.device("meta"):
        model = Lumina2DiT(config)
        freeze(model, settings.freeze)
        if settings.lora is not None:
            add_lora(model, settings.lora, settings.seed)
    return Counts.of(model)


def checkpoint_bytes(settings: TrainSettings, counts: Counts) -> int:
    """Of weights, averages and moments; and twice of the bfloat16 weights that do not learn, beside adapters never."""
    weight = 4 if settings.masters == "float32" else 2
    still = 0 if settings.lora else 2 * 2 * (counts.all - counts.learning)
    return (weight + 4 + moment_bytes(settings)) * counts.learning + still


def show(lines: Sequence[Line], config: DiTConfig, settings: TrainSettings, gpus: int, share: float) -> None:
    """Print the phases as a table; below it time, memory and bytes, and what is assumed."""
    speed = share * BF16_PEAK["H100"]
    table = Table("from step", "steps", "samples", "epochs", "px", "tokens", "EFLOP", "H100 h", show_footer=True)
    total = sum(line.flops for line in lines)
    hours = sum(line.hours(speed) for line in lines)
    feet = ("together", f"{settings.steps:,}", f"{settings.steps * settings.batch:,}", "", "", "", _short(total / 1e18))
    for column, footer in zip(table.columns, (*feet, _short(hours)), strict=True):
        column.footer, column.justify, column.no_wrap = footer, "right", True
    for line in lines:
        epochs = f"{line.samples / line.pictures:,.1f}" if line.pictures else "?"
        areas, tokens = ", ".join(map(str, line.areas)), f"{line.tokens:,.0f}"
        row = (f"{line.first:,}", f"{line.steps:,}", f"{line.samples:,}", epochs, areas, tokens)
        table.add_row(*row, _short(line.flops / 1e18), _short(line.hours(speed)))
    console.print(table)
    for text in _notes(lines, settings, config, gpus, share, hours):
        console.print(text, soft_wrap=True)


def _notes(
    lines: Sequence[Line], settings: TrainSettings, config: DiTConfig, gpus: int, share: float, hours: float
) -> Iterator[str]:
    found = counts(settings, config)
    owned = found.learning if settings.lora else found.learning // gpus
    state = state_bytes(settings, replace(found, owned=owned))
    batches = [
        f"{kept_bytes(config, settings.token_budget, option, settings.precision) / 2**30:.1f} with recompute {option}"
        for option in get_args(Recompute)
    ]
    yield f"{hours / 24 / gpus:,.1f} days on {gpus} H100, at {share:.0%} of their 989 TFLOP/s (--gpus, --share-of-peak)"
    yield (
        f"memory of each: {state / 2**30:.1f} GiB for {found.all / 1e6:,.1f}M weights, of which "
        f"{found.learning / 1e6:,.1f}M learn; for {settings.token_budget:,} tokens (train.token_budget) "
        f"{', '.join(batches)}"
    )
    yield f"a checkpoint: {checkpoint_bytes(settings, found) / 1e9:,.1f} GB, {settings.checkpoints.keep_last} are kept"
    if lines[0].pictures is None:
        yield f"there is no cache: every picture is taken for a square of its area, every caption for {TEXT} tokens"


def _short(number: float) -> str:
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"
