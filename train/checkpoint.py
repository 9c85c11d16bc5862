"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/00000500/
      transformer/         the weights, in the diffusers layout
      transformer_ema/     their moving average, likewise; adapter/ and adapter_ema/ where those learn
      optimizer.safetensors
      state.json           step, seed and cache: what has to fit for the run to go on

A checkpoint's folder appears under its name only when it is complete.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shared.errors import UserError
from shared.files import atomic_folder
from shared.fingerprint import differences
from train.ema import Ema, copy_into
from train.optimizer import restore_state, state_tensors
from train.trained import Trained

VERSION = 2

Weights = Mapping[str, nn.Parameter]
"""What the optimiser changes, by name."""


@dataclass(frozen=True)
class State:
    """The facts that name a run's position; all but `step` must be equal for a run to go on."""

    step: int
    """The next step to run."""
    seed: int
    batch: int
    cache: str
    """Identity of the tensor cache."""
    version: int = VERSION


def path_of(run: Path, step: int) -> Path:
    """The checkpoint of a run's folder that holds the weights after `step` steps."""
    return run / "checkpoints" / f"{step:08}"


def save(
    run: Path, state: State, trained: Trained, weights: Weights, ema: Ema, optimizer: torch.optim.Optimizer
) -> Path:
    """Write the checkpoint of `state.step` and return its folder."""
    target = path_of(run, state.step)
    with atomic_folder(target) as temporary:
        trained.save(weights, temporary)
        trained.save(ema.average, temporary, "_ema")
        save_file(state_tensors(weights, optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    return target


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run's folder, or None."""
    return max((path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir()), default=None)


def load(
    path: Path, expected: State, trained: Trained, weights: Weights, ema: Ema, optimizer: torch.optim.Optimizer
) -> int:
    """Restore a checkpoint into the three and return the next step.

    Raises UserError listing what differs where the run would not go on with the same samples.
    """
    found = json.loads((path / "state.json").read_text(encoding="utf-8"))
    step = int(found["step"])
    problems = differences({**asdict(expected), "step": step}, found)
    if problems:
        raise UserError(
            f"{path} belongs to another run:\n  "
            + "\n  ".join(problems)
            + "\nset these back, or start a run of its own with --name"
        )
    values, averages = trained.load(path), trained.load(path, "_ema")
    restore_state(load_file(path / "optimizer.safetensors"), weights, optimizer)
    copy_into(weights, values)
    copy_into(ema.average, averages)
    return step
