"""`train plot`: the records of runs as a picture.

Runs are drawn over the samples they have seen, so that those of different batches compare. Nothing is drawn where no
run has numbers for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import atomic_file
from train.records import METRICS, SKIPPED, VALIDATION, read

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind (Okabe and Ito, "Color Universal Design", 2008)."""
STYLES = ("-", "--", ":", "-.")
SMOOTH = 50
"""A line is smoothed over this part of its steps."""
COLUMNS = 3
WIDTH, HEIGHT = 5.2, 3.4
"""Of a panel, in inches."""

SEEN = "samples seen"

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """What a run has recorded of itself."""

    name: str
    steps: Sequence[dict[str, Any]]
    validations: Sequence[dict[str, Any]]
    skipped: Sequence[dict[str, Any]]
    seen: Numbers
    """Samples seen after each step."""

    def column(self, name: str) -> Numbers:
        """A number of every step; NaN where there is none."""
        return np.array([step.get(name) for step in self.steps], dtype=np.float64)

    def seen_at(self, records: Sequence[dict[str, Any]]) -> Numbers:
        """Samples seen after the steps of some records."""
        places = np.searchsorted([step["step"] for step in self.steps], [record["step"] for record in records])
        return self.seen[np.minimum(places, len(self.seen) - 1)]


def read_history(run: Path) -> History:
    """Raises UserError where no step of a run is recorded."""
    steps, validations, skipped = (read(run / file) for file in (METRICS, VALIDATION, SKIPPED))
    if not steps:
        raise UserError(f"{run}: no step is recorded there; give the --name of a run")
    return History(run.name, steps, validations, skipped, np.cumsum([step["images"] for step in steps], dtype=float))


def plot(runs: Sequence[Path], out: Path) -> Path:
    """Draw runs, folders WORK/runs/NAME, into a PNG."""
    figure = draw([read_history(run) for run in runs])
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return out


def draw(histories: Sequence[History]) -> Figure:
    """The panels for which there are numbers."""
    panels = [(title, panel) for title, panel in PANELS.items() if any(map(panel.has, histories))]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * WIDTH, rows * HEIGHT + 0.5), layout="constrained")
    for number, (title, panel) in enumerate(panels):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(panel.across, fontsize=8)
        axes.tick_params(labelsize=8, which="both")
        if panel.across is SEEN:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for history, colour in zip(histories, cycle(COLOURS)):
            if panel.has(history):
                panel.draw(axes, Series(history, colour, f"{history.name}: " * (len(histories) > 1)))
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(fontsize=7, frameon=False)
    figure.suptitle(", ".join(history.name for history in histories), fontsize=12)
    return figure


def smoothed(values: Numbers, window: int) -> Numbers:
    """The mean of the values within half a window on either side; NaN counts for nothing."""
    kernel = np.ones(min(2 * (window // 2) + 1, len(values)))
    there = np.isfinite(values)
    sums, counts = (np.convolve(one, kernel, "same") for one in (np.where(there, values, 0.0), there.astype(float)))
    return _ratio(sums, np.round(counts))


def by_time(steps: Sequence[dict[str, Any]]) -> Numbers:
    """The mean loss of some steps in each part of the times."""
    losses = np.array([step["loss_by_time"] for step in steps], dtype=np.float64)
    there = np.isfinite(losses)
    return _ratio(np.where(there, losses, 0.0).sum(axis=0), there.sum(axis=0))


def _ratio(sums: Numbers, counts: NDArray[Any]) -> Numbers:
    """NaN where nothing is counted."""
    means: Numbers = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means


@dataclass(frozen=True)
class Series:
    """A run as it is drawn in every panel."""

    history: History
    colour: str
    prefix: str
    """Of what the legend says of it: its name, unless it is alone."""

    def line(self, axes: Axes, across: Numbers, values: Numbers, style: str = "-", says: str = "", **more: Any) -> None:
        """A line of the legend."""
        axes.plot(across, values, style, color=self.colour, label=f"{self.prefix}{says}".rstrip(": "), **more)

    def column(self, axes: Axes, name: str, style: str = "-", says: str = "") -> None:
        """A number of every step: faint as it is, and smoothed."""
        values = self.history.column(name)
        axes.plot(self.history.seen, values, color=self.colour, alpha=0.2, linewidth=0.8)
        self.line(axes, self.history.seen, smoothed(values, len(values) // SMOOTH), style, says)


def _loss(axes: Axes, run: Series) -> None:
    run.column(axes, "loss", says="pictures")
    if np.nanmax(run.history.column("loss_pooled")) > 0:
        run.column(axes, "loss_pooled", ":", "pooled")


def _loss_by_time(axes: Axes, run: Series) -> None:
    steps = run.history.steps
    tenth = max(1, len(steps) // 10)
    times = _middles(len(steps[0]["loss_by_time"]))
    run.line(axes, times, by_time(steps[:tenth]), ":", "first tenth of the steps")
    run.line(axes, times, by_time(steps[-tenth:]), "-", "last tenth")


def _validation(axes: Axes, run: Series) -> None:
    records = run.history.validations
    for name, style in zip(records[-1]["series"], cycle(STYLES)):
        losses = np.array([np.mean(record["series"].get(name, np.nan)) for record in records])
        run.line(axes, run.history.seen_at(records), losses, style, name, marker=".")


def _validation_by_time(axes: Axes, run: Series) -> None:
    for (name, curve), style in zip(run.history.validations[-1]["series"].items(), cycle(STYLES)):
        run.line(axes, _middles(len(curve)), np.array(curve), style, name)


def _norm(axes: Axes, run: Series) -> None:
    run.column(axes, "grad_norm", says="steps taken" if run.history.skipped else "")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if run.history.skipped:
        seen = run.history.seen_at(run.history.skipped)
        run.line(axes, seen, np.full(len(seen), axes.get_ylim()[0]), "x", "not taken", clip_on=False)


def _learning_rate(axes: Axes, run: Series) -> None:
    run.line(axes, run.history.seen, run.history.column("learning_rate"))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylim(bottom=0)


def _shares(axes: Axes, run: Series) -> None:
    run.column(axes, "share_of_peak", says="of the peak")
    run.column(axes, "share_waiting", ":", "of the time, waiting for data")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1)


def _memory(axes: Axes, run: Series) -> None:
    run.line(axes, run.history.seen, run.history.column("memory") / 2**30)
    axes.set_ylim(bottom=0)


def _middles(parts: int) -> Numbers:
    return (np.arange(parts) + 0.5) / parts


@dataclass(frozen=True)
class Panel:
    """One of the drawings."""

    draw: Callable[[Axes, Series], None]
    has: Callable[[History], bool] = lambda _: True
    """Whether there is something to draw of a run."""
    across: str = SEEN


def _was_validated(history: History) -> bool:
    return len(history.validations) > 0


def _has_memory(history: History) -> bool:
    return bool(np.isfinite(history.column("memory")).any())


_TIMES = "time, from noise (0) to data (1)"

PANELS = {
    "Loss": Panel(_loss),
    "Loss by time": Panel(_loss_by_time, across=_TIMES),
    "Norm of the gradient": Panel(_norm),
    "Loss on held-out pictures": Panel(_validation, _was_validated),
    "Loss on held-out pictures by time, at the end": Panel(_validation_by_time, _was_validated, _TIMES),
    "Learning rate": Panel(_learning_rate),
    "Images per second": Panel(lambda axes, run: run.column(axes, "images_per_second")),
    "Share of the GPUs' peak": Panel(_shares),
    "Memory of a GPU, GiB": Panel(_memory, _has_memory),
}
"""By title, in order."""
