"""What runs have recorded of themselves, step by step: what `train plot` draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from train.records import METRICS, SKIPPED, VALIDATION, read

PART, FEWEST = 50, 10
"""A line is smoothed over this part of its steps, but over so many at least, or a quarter of them if they are few."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """The records of a run."""

    name: str
    steps: Sequence[dict[str, Any]]
    validations: Sequence[dict[str, Any]]
    skipped: Sequence[dict[str, Any]]
    seen: Numbers
    """Samples seen after each step."""

    def column(self, name: str) -> Numbers:
        """A number of every step; NaN where there is none."""
        return np.array([step.get(name) for step in self.steps], dtype=np.float64)

    def taken(self, name: str) -> Numbers:
        """The same, and NaN at the steps that were not taken: a spike is no part of what the run went through."""
        missed = [record["step"] for record in self.skipped]
        return np.where(np.isin(self.column("step"), missed), np.nan, self.column(name))

    def seen_at(self, records: Sequence[dict[str, Any]]) -> Numbers:
        """Samples seen after the steps of some records."""
        places = np.searchsorted([step["step"] for step in self.steps], [record["step"] for record in records])
        return self.seen[np.minimum(places, len(self.seen) - 1)]

    def tenths(self, seen: float) -> tuple[Numbers, Numbers]:
        """The mean losses by time in the first and in the last tenth of the steps up to so many samples seen."""
        steps = self.steps[: max(1, int(np.searchsorted(self.seen, seen, side="right")))]
        tenth = max(1, len(steps) // 10)
        return by_time(steps[:tenth]), by_time(steps[-tenth:])


def read_history(run: Path) -> History:
    """Raises UserError where no step of a run is recorded."""
    steps, validations, skipped = (read(run / file) for file in (METRICS, VALIDATION, SKIPPED))
    if not steps:
        raise UserError(f"{run}: no step is recorded there; give the --name of a run")
    return History(run.name, steps, validations, skipped, np.cumsum([step["images"] for step in steps], dtype=float))


def window_of(steps: int) -> int:
    """Over how many steps a line of so many is smoothed."""
    return max(steps // PART, min(steps // 4, FEWEST))


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
