"""`train plot`: the records of runs as a picture.

Runs are drawn over the samples they have seen, so that those of different batches compare. Nothing is drawn where no
run has numbers for it. A colour is a run, a style of line is what is drawn of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from shared.files import atomic_file
from train.history import History, Numbers, read_history, smoothed, window_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind (Okabe and Ito, "Color Universal Design", 2008)."""
GREY = "0.3"
"""In legends, of what is the same for all runs."""
STYLES = ("-", "--", ":", "-.")
COLUMNS = 3
WIDTH, HEIGHT = 5.2, 3.4
"""Of a panel, in inches."""
OUTLIERS = 0.005
"""Share of the single steps that may lie above a panel, and as many below it."""
ROOM = 0.1
"""Of a panel's height, for each row of its legend."""

SEEN, TIMES = "samples seen", "time, from noise (0) to data (1)"


def plot(runs: Sequence[Path], out: Path) -> Path:
    """Draw runs, folders WORK/runs/NAME, into a PNG. Raises UserError where no step of one is recorded."""
    figure = draw([read_history(run) for run in runs])
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return out


def draw(histories: Sequence[History]) -> Figure:
    """The panels for which there are numbers."""
    panels = [(title, panel) for title, panel in PANELS.items() if any(map(panel.has, histories))]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * WIDTH, rows * HEIGHT + 0.5), layout="constrained")
    runs = [Run(history, colour, histories) for history, colour in zip(histories, cycle(COLOURS))]
    for number, (title, panel) in enumerate(panels):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        _across(axes, panel.across, max(history.seen[-1] for history in histories))
        for run in runs:
            if panel.has(run.history):
                panel.draw(axes, run)
        _up(axes, _legend(axes, runs), panel.from_zero)
    key = [Line2D([], [], color=run.colour, linewidth=3, label=run.about) for run in runs]
    figure.legend(handles=key, loc="outside upper left", ncols=COLUMNS, fontsize=11, frameon=False)
    return figure


def _across(axes: Axes, across: str, seen: float) -> None:
    """The axis to the right, the same in all panels over samples; and what is alike everywhere."""
    axes.set_xlabel(across, fontsize=9)
    axes.tick_params(labelsize=9, which="both")
    axes.set_xlim(0, 1.01 * seen if across is SEEN else 1)
    if across is SEEN:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, runs: Sequence["Run"]) -> int:
    """What the styles of lines mean, where there are several; returns the rows it takes."""
    lines = {str(label): line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(lines) < 2:
        return 0
    key = [Line2D([], [], label=label) for label in lines]
    for handle, line in zip(key, lines.values(), strict=True):
        handle.update_from(line)
        handle.set_color(GREY if len(runs) > 1 else runs[0].colour)
    axes.legend(handles=key, loc="upper right", ncols=2, fontsize=8, frameon=False, borderaxespad=0.2)
    return -(-len(lines) // 2)


def _up(axes: Axes, rows: int, from_zero: bool) -> None:
    """Limits that leave out a few single steps, not what is smoothed, and have room for the rows of a legend."""
    ends = []
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values) and line.get_transform() is axes.transData:
            share = OUTLIERS if line.get_alpha() else 0
            ends += [np.quantile(values, share, method="lower"), np.quantile(values, 1 - share, method="higher")]
    if not ends:
        return
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.array([0 if from_zero else min(ends), max(ends)]))
    height = (high - low) or abs(high) or 1
    limits = np.array([low - (0 if from_zero else 0.05) * height, high + (0.05 + ROOM * rows) * height])
    axes.set_ylim(*scale.inverted().transform(limits))


@dataclass(frozen=True)
class Run:
    """A run as it is drawn in every panel."""

    history: History
    colour: str
    others: Sequence[History]
    """All that are drawn, itself too."""

    @property
    def about(self) -> str:
        """For the legend of the whole."""
        return f"{self.history.name}: {len(self.history.steps):,} steps, {self.history.seen[-1]:,.0f} samples"

    def line(self, axes: Axes, across: Numbers, values: Numbers, style: str = "-", says: str = "", **more: Any) -> None:
        """A line, and what the legend says of all in its style."""
        axes.plot(across, values, style, color=self.colour, label=says, **more)

    def steps(self, axes: Axes, values: Numbers, style: str = "-", says: str = "") -> None:
        """A number of every step: faint as it is, and smoothed."""
        axes.plot(self.history.seen, values, color=self.colour, alpha=0.2, linewidth=0.8)
        self.line(axes, self.history.seen, smoothed(values, window_of(len(values))), style, says)

    def column(self, axes: Axes, name: str, style: str = "-", says: str = "") -> None:
        """That of the records."""
        self.steps(axes, self.history.column(name), style, says)

    def styles(self) -> dict[str, str]:
        """Of the series of held-out pictures, the same for all runs."""
        names = dict.fromkeys(name for other in self.others for look in other.validations for name in look["series"])
        return dict(zip(names, cycle(STYLES)))


def _loss(axes: Axes, run: Run) -> None:
    run.steps(axes, run.history.taken("loss"), says="pictures")
    if (run.history.column("loss_pooled") > 0).any():
        run.steps(axes, run.history.taken("loss_pooled"), ":", "pooled")


def _loss_by_time(axes: Axes, run: Run) -> None:
    seen = min(other.seen[-1] for other in run.others)  # As far as all of them are.
    first, last = run.history.tenths(seen)
    times = _middles(len(first))
    run.line(axes, times, first, ":", f"first tenth of {seen:,.0f} samples")
    run.line(axes, times, last, "-", "last tenth of them")


def _validation(axes: Axes, run: Run) -> None:
    records = run.history.validations
    for name, style in run.styles().items():
        if any(name in record["series"] for record in records):
            losses = np.array([np.mean(record["series"].get(name, np.nan)) for record in records])
            run.line(axes, run.history.seen_at(records), losses, style, name, marker=".")


def _validation_by_time(axes: Axes, run: Run) -> None:
    styles = run.styles()
    for name, curve in run.history.validations[-1]["series"].items():
        run.line(axes, _middles(len(curve)), np.array(curve), styles[name], name, marker=".")


def _norm(axes: Axes, run: Run) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    run.steps(axes, run.history.taken("grad_norm"), says="steps taken")
    if run.history.skipped:
        seen, edge = run.history.seen_at(run.history.skipped), axes.get_xaxis_transform()
        run.line(axes, seen, np.full(len(seen), 0.03), "x", "not taken", transform=edge)


def _learning_rate(axes: Axes, run: Run) -> None:
    run.line(axes, run.history.seen, run.history.column("learning_rate"))
    axes.yaxis.set_major_formatter("{x:.3g}")


def _shares(axes: Axes, run: Run) -> None:
    run.column(axes, "share_of_peak", says="of the peak")
    run.column(axes, "share_waiting", ":", "of the time, waiting for data")
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _memory(axes: Axes, run: Run) -> None:
    run.line(axes, run.history.seen, run.history.column("memory") / 2**30)


def _middles(parts: int) -> Numbers:
    return (np.arange(parts) + 0.5) / parts


@dataclass(frozen=True)
class Panel:
    """One of the drawings."""

    draw: Callable[[Axes, Run], None]
    has: Callable[[History], bool] = lambda _: True
    """Whether there is something to draw of a run."""
    across: str = SEEN
    from_zero: bool = False
    """Whether the axis begins with 0: for what compares as a ratio."""


def _was_validated(history: History) -> bool:
    return len(history.validations) > 0


def _has_memory(history: History) -> bool:
    return bool(np.isfinite(history.column("memory")).any())


PANELS = {
    "Loss": Panel(_loss),
    "Loss by time": Panel(_loss_by_time, across=TIMES),
    "Norm of the gradient": Panel(_norm),
    "Loss on held-out pictures": Panel(_validation, _was_validated),
    "Loss on held-out pictures by time, at the end": Panel(_validation_by_time, _was_validated, TIMES),
    "Learning rate": Panel(_learning_rate, from_zero=True),
    "Images per second": Panel(lambda axes, run: run.column(axes, "images_per_second"), from_zero=True),
    "Share of the GPUs' peak": Panel(_shares, from_zero=True),
    "Memory of a GPU, GiB": Panel(_memory, _has_memory, from_zero=True),
}
"""By title, in order."""
