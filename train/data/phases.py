"""The phases of a run: from which step on which pictures are seen, at which resolutions, at which learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from train.cache.reader import CacheReader
from train.data.plan import Plan
from train.data.selection import held_out, values, weights_of
from train.settings import PhaseSettings, TrainSettings


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of training."""

    first: int
    """Its first step."""
    readers: Sequence[CacheReader]
    """One for each area; a sample draws one of them."""
    pictures: NDArray[np.int64]
    """Indices of the pictures it sees."""
    plan: Plan
    """Of positions among these."""
    taken: int
    """Steps of the plan that earlier phases have taken: a phase that sees the same pictures goes on with them."""
    learning_rate: float

    def samples(self, step: int) -> NDArray[np.int64]:
        """Indices of the pictures of a step of the run, by position in the global batch."""
        return self.pictures[self.plan.step(self._planned(step))]

    def epochs(self, step: int) -> float:
        """How often a picture of this phase had been seen before a step."""
        return self.plan.epochs(self._planned(step))

    def _planned(self, step: int) -> int:
        return step - self.first + self.taken


@dataclass(frozen=True, eq=False)
class Phases:
    """All phases of a run, one after the other."""

    phases: Sequence[Phase]
    loss_weights: NDArray[np.float64] | None
    """Of each picture's loss; None: all alike."""

    def lines(self, steps: int) -> list[str]:
        """What is seen in a run of so many steps, a line for each phase."""
        ends = ends_of([phase.first for phase in self.phases], steps)
        return [
            f"from step {phase.first:,}: {len(phase.pictures):,} pictures at "
            f"{', '.join(str(reader.area) for reader in phase.readers)} px, {phase.epochs(end):,.1f} epochs"
            for phase, end in zip(self.phases, ends, strict=True)
            if phase.first < end
        ]

    def at(self, step: int) -> Phase:
        """The phase of a step."""
        return next(phase for phase in reversed(self.phases) if phase.first <= step)


def ends_of(firsts: Sequence[int], steps: int) -> list[int]:
    """The step behind the last one of each phase, by their first ones, in a run of so many steps."""
    return [min(end, steps) for end in (*firsts[1:], steps)]


def plan_phases(work: Path, reader: CacheReader, settings: TrainSettings) -> Phases:
    """The phases of the settings. Raises UserError where one would see nothing, or too little to tell apart."""
    expressions = [
        (f"train.phases.{number}.{name}", expression)
        for number, phase in enumerate(settings.phases)
        for name, expression in (("where", phase.where), ("balance", phase.balance))
        if expression
    ]
    if settings.loss_weight:
        expressions.append(("train.loss_weight", settings.loss_weight))
    names = [name for name, _ in expressions]
    columns = dict(zip(names, values(work, reader, expressions), strict=True))
    kept = np.arange(reader.images) >= held_out(reader, settings.validation.share)
    loss_weights = columns.get("train.loss_weight")
    if loss_weights is not None:
        loss_weights = weights_of(loss_weights, "train.loss_weight")
    phases: list[Phase] = []
    for number, phase in enumerate(settings.phases):
        seen = kept
        if (where := columns.get(f"train.phases.{number}.where")) is not None:
            seen = seen & (np.nan_to_num(where) != 0)
        phases.append(
            _phase(phase, number, reader, settings, seen, columns.get(f"train.phases.{number}.balance"), phases)
        )
    return Phases(phases, loss_weights)


def _phase(
    settings: PhaseSettings,
    number: int,
    reader: CacheReader,
    run: TrainSettings,
    seen: NDArray[np.bool_],
    balance: NDArray[np.float64] | None,
    earlier: Sequence[Phase],
) -> Phase:
    name, pictures = f"train.phases.{number}", np.flatnonzero(seen)
    if not len(pictures):
        raise UserError(f"{name}: no picture of the cache is left to train on; check its where, and validation.share")
    weights = None if balance is None else weights_of(balance[pictures], f"{name}.balance")
    plan, taken = Plan(run.seed, len(pictures), run.batch, weights, stream=number), 0
    ends = [phase.first for phase in run.phases[1 : number + 1]]
    for before, end in zip(earlier, ends, strict=True):
        if _same(before, pictures, weights):
            plan, taken = before.plan, before.taken + end - before.first
    return Phase(
        first=settings.first,
        readers=[reader.at(area) for area in settings.areas or (reader.areas[-1],)],
        pictures=pictures,
        plan=plan,
        taken=taken,
        learning_rate=settings.learning_rate or run.optimizer.learning_rate,
    )


def _same(phase: Phase, pictures: NDArray[np.int64], weights: NDArray[np.float64] | None) -> bool:
    """Whether a phase sees these pictures, each this often."""
    if not np.array_equal(phase.pictures, pictures):
        return False
    if phase.plan.weights is None or weights is None:
        return phase.plan.weights is weights
    return np.array_equal(phase.plan.weights, weights)
