"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/00000500/
      transformer/         the weights, in the diffusers layout
      transformer_ema/     their moving average, likewise; adapter/ and adapter_ema/ where those learn
      optimizer/           state of the optimiser, by the names of the weights
      state.json           step, seed and cache: what has to fit for the run to go on; size and sum of every file,
                           of its own contents too

Each rank writes the weights that it owns: one file with one rank, shards with an index with several. Either is read by
any number of ranks. The folder appears under its name only when it is complete.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import UserError
from shared.files import file_sha256
from shared.fingerprint import differences
from shared.progress import console
from shared.sealed import is_sealed
from train.ema import Ema, copy_into
from train.model.names import State as Tensors
from train.model.weights import read_sharded
from train.optimizer import restore_state, state_tensors
from train.settings import TrainSettings
from train.trained import Trained

VERSION = 4
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class State:
    """The facts that name a run's position; all but `step` must be equal for a run to go on."""

    step: int
    """The next step to run."""
    seed: int
    batch: int
    cache: str
    """Identity of the tensor cache."""
    learning: str
    """Which weights learn."""
    optimizer: str
    """What its state consists of."""
    pictures: str
    """Which are held out, and what the phases that have begun show. Those to come may change, and learning rates."""
    version: int = VERSION


def state_of(step: int, settings: TrainSettings, cache: str) -> State:
    """The position of a run of these settings."""
    learning = "all weights"
    if settings.freeze:
        learning += f" but {', '.join(sorted(settings.freeze))}"
    if settings.lora is not None:
        learning = f"adapters of rank {settings.lora.rank} on {', '.join(sorted(settings.lora.targets))}"
    begun = [
        phase.model_dump_json(exclude={"learning_rate"}) for phase in settings.phases if phase.first < max(1, step)
    ]
    pictures = f"{settings.validation.share:g} held out; {', '.join(begun)}"
    return State(step, settings.seed, settings.batch, cache, learning, settings.optimizer.states, pictures)


@dataclass(frozen=True)
class Learner:
    """What a checkpoint keeps, as far as this rank owns it."""

    trained: Trained
    weights: Mapping[str, nn.Parameter]
    ema: Ema
    optimizer: torch.optim.Optimizer

    def snapshot(self, is_first: bool) -> dict[str, Tensors]:
        """Copies in the host's memory, by files within the checkpoint's folder, which goes on unchanged by training.

        The first rank has besides what does not learn.
        """
        found = {
            self.trained.file(): self.trained.tensors(self.weights, is_first),
            self.trained.file("_ema"): self.trained.tensors(self.ema.average, is_first),
            f"optimizer/{OPTIMIZER_FILE}": state_tensors(self.weights, self.optimizer),
        }
        return {
            file: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            for file, tensors in found.items()
        }

    def restore(self, path: Path) -> None:
        """Take over the values of a checkpoint, written by any number of ranks."""
        values, averages = self.trained.load(path), self.trained.load(path, "_ema")
        restore_state(read_sharded(path / "optimizer" / OPTIMIZER_FILE), self.weights, self.optimizer)
        copy_into(self.weights, values)
        copy_into(self.ema.average, averages)


def folder_of(run: Path) -> Path:
    """Where a run has its checkpoints."""
    return run / "checkpoints"


def path_of(run: Path, step: int) -> Path:
    """The checkpoint of a run's folder that holds the weights after `step` steps."""
    return folder_of(run) / f"{step:08}"


def all_of(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, the oldest first."""
    return sorted(path for path in folder_of(run).glob("[0-9]*") if path.is_dir())


def newest(run: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written, or None. Says which damaged ones it passes over.

    Raises UserError where there are checkpoints, all of them damaged.
    """
    paths = all_of(run)
    for path in reversed(paths):
        if not (problem := damage(path)):
            return path
        console.print(f"{path}: passed over, {problem}", soft_wrap=True)
    if paths:
        raise UserError(f"{folder_of(run)}: every checkpoint is damaged; move them away to begin anew")
    return None


def damage(path: Path) -> str:
    """What of a checkpoint is not as it was written; empty: nothing."""
    try:
        document = (path / STATE_FILE).read_bytes()
    except OSError as error:
        return f"{STATE_FILE} cannot be read ({error})"
    if not is_sealed(document):
        return f"{STATE_FILE} has other bytes than were written"
    files: dict[str, dict[str, Any]] = json.loads(document)["files"]
    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(lambda name: _changed(path / name, files[name]), sorted(files))), "")


def read_manifest(path: Path) -> dict[str, Any]:
    """What `state.json` says: a State's facts, `files` by name, and what else was kept."""
    found: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return found


def check_state(path: Path, settings: TrainSettings, cache: str) -> int:
    """The step of a checkpoint. Raises UserError listing what differs where a run would not go on as it was."""
    manifest = read_manifest(path)
    step = int(manifest["step"])
    expected = asdict(state_of(step, settings, cache))
    if problems := differences(expected, {name: manifest.get(name) for name in expected}):
        raise UserError(
            f"{path} belongs to another run:\n  "
            + "\n  ".join(problems)
            + "\nset these back, or start a run of its own with --name"
        )
    return step


def describe(file: Path) -> dict[str, Any]:
    """Size and sum of a file."""
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _changed(file: Path, written: Mapping[str, Any]) -> str:
    """How a file differs from what was written; empty: not at all."""
    name = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return f"{name} is missing"
    if (size := file.stat().st_size) != written["bytes"]:
        return f"{name} has {size:,} of {written['bytes']:,} bytes"
    return "" if file_sha256(file) == written["sha256"] else f"{name} has other bytes than were written"
