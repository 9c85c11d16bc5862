"""The weights of any checkpoint, whole: adapters are added to what they were trained with."""

import json
from pathlib import Path

from shared.errors import UserError
from train.checkpoint import STATE_FILE
from train.model.adapter_files import base_of, is_adapter, read_adapter
from train.model.adapters import Adapter, merged
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.names import State, to_diffusers
from train.model.weights import load_state, load_weights, model_of


def load_model(source: str | None, base: Path, raw: bool = False) -> Lumina2DiT:
    """The transformer of a checkpoint, in the dtype of its file or, with adapters added, in float32.

    `source` is a checkpoint of a run, of which the averaged weights are taken, or the `raw` ones; adapters, in a file
    or a folder, for the transformer of the pipeline folder `base`; or what `load_weights` reads. None: `base` itself.
    Raises UserError that names the file and what does not fit.
    """
    own = str(base / "transformer")
    config, path = DiTConfig.from_folder(base / "transformer"), Path(source or own)
    if is_checkpoint(path):
        return model_of(checkpoint_state(path, base, raw), config, path)
    if raw:
        raise UserError(f"{path}: only a checkpoint WORK/runs/NAME/checkpoints/STEP has raw weights; leave out --raw")
    if is_adapter(path):
        return model_of(_with(read_adapter(path), own, config), config, path)
    return load_weights(str(path), config)


def is_checkpoint(path: Path) -> bool:
    """Whether it is a folder WORK/runs/NAME/checkpoints/STEP."""
    return (path / STATE_FILE).is_file()


def checkpoint_state(checkpoint: Path, base: Path, raw: bool) -> State:
    """The whole transformer of a run's checkpoint, under diffusers' names; `base` is the pipeline that was trained."""
    folder = _part(checkpoint, "transformer", raw)
    if folder.is_dir():
        return load_state(folder)
    adapter = checkpoint_adapter(checkpoint, raw)
    own = base / "transformer"
    source = base_of(_part(checkpoint, "adapter", raw)) or str(own)
    return _with(adapter, source, DiTConfig.from_folder(own))


def checkpoint_adapter(checkpoint: Path, raw: bool) -> Adapter:
    """The adapters of a run's checkpoint. Raises UserError where it has none."""
    folder = _part(checkpoint, "adapter", raw)
    if not folder.is_dir():
        raise UserError(f"{checkpoint}: no {folder.name}/ in it, which training with train.lora leaves there")
    return read_adapter(folder)


def origin(checkpoint: Path, raw: bool) -> dict[str, str]:
    """Where the weights of a run's checkpoint come from: `step`, and `weights`, averaged or raw."""
    if not is_checkpoint(checkpoint):
        raise UserError(f"{checkpoint}: no {STATE_FILE} in it; give a folder WORK/runs/NAME/checkpoints/STEP")
    step = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["step"]
    return {"step": str(step), "weights": "raw" if raw else "averaged"}


def _with(adapter: Adapter, source: str, config: DiTConfig) -> State:
    return merged(to_diffusers(load_weights(source, config).state_dict()), adapter)


def _part(checkpoint: Path, name: str, raw: bool) -> Path:
    return checkpoint / (name if raw else f"{name}_ema")
