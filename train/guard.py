"""Which steps are not taken: one gradient that is not finite, or far too large, would spoil the weights and the moments
of the optimiser for good.

Clipping bounds how far a bad gradient moves the weights, not in which direction, and NaN it does not bound at all.
"""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

from shared.errors import UserError
from train.settings import GuardSettings


class Guard:
    """Decides from the losses and norms of a run, so ranks that are shown the same numbers decide the same."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._norms: deque[float] = deque(maxlen=settings.window)
        """Of the last steps that were taken."""
        self._skipped: list[int] = []
        """The steps since then."""

    def refuse(self, step: int, loss: float, norm: float) -> str | None:
        """Why a step is not to be taken; None where it is to be.

        `loss` is the mean over the global batch, `norm` that of the gradient of all parameters, before clipping. Raises
        UserError at the last of `patience` steps in a row.
        """
        reason = self._reason(loss, norm)
        if reason is None:
            self._norms.append(norm)
            self._skipped.clear()
            return None
        self._skipped.append(step)
        if len(self._skipped) >= self._settings.patience:
            raise UserError(
                f"train: {len(self._skipped)} steps in a row, {self._skipped[0]:,} to {step:,}, could not be taken; of "
                f"the last one the {reason}\nthe newest checkpoint has none of them in it: start the command again to "
                "go on from there with other settings, such as a lower train.optimizer.learning_rate"
            )
        return reason

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, for JSON."""
        return {"norms": list(self._norms), "skipped": list(self._skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._norms = deque(state["norms"], maxlen=self._settings.window)
        self._skipped = list(state["skipped"])

    def _reason(self, loss: float, norm: float) -> str | None:
        for name, value in ("loss", loss), ("gradient norm", norm):
            if not math.isfinite(value):
                return f"{name} is not finite: {value}"
        if len(self._norms) < max(1, self._settings.window // 4):
            return None
        usual = median(self._norms)
        # All gradients are 0 where nothing depends on the weights yet: the first that is not is no spike.
        if usual > 0 and norm > self._settings.norm_factor * usual:
            return (
                f"gradient norm {norm:.3g} is {norm / usual:.3g} times the median {usual:.3g} "
                f"of the last {len(self._norms)} steps"
            )
        return None


def skipped(step: int, reason: str, loss: float, norm: float, image_ids: Iterable[str]) -> dict[str, Any]:
    """The record of a step that was not taken, for skipped.jsonl. JSON has no number that is not finite: null."""
    return {
        "step": step,
        "reason": reason,
        "loss": loss if math.isfinite(loss) else None,
        "norm": norm if math.isfinite(norm) else None,
        "image_ids": list(image_ids),
    }
