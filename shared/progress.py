"""Progress of long work: rate and time left, as a live bar in a terminal and as lines in a log."""

import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False)

LOG_EVERY = 10.0
"""Seconds between two lines where the output is not a terminal."""
WINDOW = 300.0
"""Seconds that a rate is of: more than a shard takes, and soon without those in which a model was compiled."""


class _RateColumn(ProgressColumn):
    """Finished items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s")


class Meter:
    """Shows how many of `total` items are finished; `done` of them were finished earlier.

    Numbers are shown in `unit`s of `scale` items.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, scale: int = 1) -> None:
        self._label, self._total, self._unit, self._scale = label, total / scale, unit, scale
        self._done = done / scale
        self._lines = deque([(time.monotonic(), self._done)])
        """When how much was finished, at the start of the window and at every line since."""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _RateColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                speed_estimate_period=WINDOW,
            )
            self._task = self._bar.add_task(
                label,
                total=self._total,
                completed=self._done,  # type: ignore[arg-type]  # Any number will do.
                unit=unit,
                note="",
            )

    def advance(self, items: int = 1, note: str = "") -> None:
        """Count `items` more; `note` is a short text shown behind the rate."""
        self._done += items / self._scale
        if self._bar is not None:
            self._bar.update(self._task, advance=items / self._scale, note=note)
        elif time.monotonic() - self._lines[-1][0] >= LOG_EVERY:
            self._print(note)

    def _print(self, note: str) -> None:
        now = time.monotonic()
        while len(self._lines) > 1 and self._lines[1][0] <= now - WINDOW:
            self._lines.popleft()
        start, before = self._lines[0]
        self._lines.append((now, self._done))
        rate = (self._done - before) / max(now - start, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        console.print(
            f"{self._label}: {self._done:,.0f}/{self._total:,.0f} {self._unit}, {rate:,.1f}/s, "
            f"{clock(left)} left {note}".rstrip(),
            soft_wrap=True,
            markup=False,
        )

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    if seconds == float("inf"):
        return "-:--:--"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
