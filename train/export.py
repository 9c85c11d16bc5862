"""Weights out: what others load is made of a checkpoint."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from shared.errors import UserError
from shared.files import atomic_folder
from train.cache.hub import model_folder
from train.model.adapter_files import DIFFUSERS_FILE, DIFFUSERS_PREFIX, base_of, diffusers_header, read_adapter
from train.model.adapters import Adapter, merged, named, to_comfyui
from train.model.config import DiTConfig
from train.model.names import State, from_diffusers, to_diffusers, to_original
from train.model.weights import load_state, load_weights, save_tensors, save_transformer

Format = Literal["diffusers", "comfyui", "diffusers-lora", "comfyui-lora"]
"""A pipeline folder, or the transformer in one file; of adapters alone a folder, or one file."""
Dtype = Literal["bfloat16", "float32"]


def write(checkpoint: Path, out: Path, model: str, *, form: Format, dtype: Dtype, raw: bool) -> None:
    """Write the averaged weights of a checkpoint, or the raw ones, to `out`, which only then appears.

    Adapters are added to what they were trained with, in float32, unless the format is of adapters alone. `model` is
    the pipeline that was trained. Raises UserError where the checkpoint has no such weights.
    """
    if form.startswith("comfyui") and out.suffix != ".safetensors":
        raise UserError(f"{out}: ComfyUI loads a file; call it {out.name}.safetensors")
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    header = _header(checkpoint, raw)
    if form.endswith("-lora"):
        _write_adapter(_adapter(checkpoint, raw), out, form, kind, header)
        return
    base = model_folder(model)
    config = DiTConfig.from_folder(base / "transformer")
    state = _cast(_weights(checkpoint, base, config, raw), kind)
    if form == "comfyui":
        save_tensors(to_original(state), out, header)
    else:
        _write_pipeline(state, config, base, out, header)


def _weights(checkpoint: Path, base: Path, config: DiTConfig, raw: bool) -> State:
    """The whole transformer of a checkpoint, under diffusers' names."""
    folder = _part(checkpoint, "transformer", raw)
    if folder.is_dir():
        return load_state(folder)
    adapter = _adapter(checkpoint, raw)
    source = base_of(_part(checkpoint, "adapter", raw)) or str(base / "transformer")
    return merged(to_diffusers(load_weights(source, config).state_dict()), adapter)


def _adapter(checkpoint: Path, raw: bool) -> Adapter:
    folder = _part(checkpoint, "adapter", raw)
    if not folder.is_dir():
        raise UserError(f"{checkpoint}: no {folder.name}/ in it, which training with train.lora leaves there")
    return read_adapter(folder)


def _part(checkpoint: Path, name: str, raw: bool) -> Path:
    return checkpoint / (name if raw else f"{name}_ema")


def _write_pipeline(state: State, config: DiTConfig, base: Path, out: Path, header: Mapping[str, str]) -> None:
    """Copy the pipeline folder with this transformer in place of its own."""
    with atomic_folder(out) as temporary:
        for part in sorted(base.iterdir()):
            if part.is_dir() and part.name != "transformer" and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        shutil.copy(base / "model_index.json", temporary)
        save_transformer(from_diffusers(state), config, temporary / "transformer", header)


def _write_adapter(adapter: Adapter, out: Path, form: Format, dtype: torch.dtype, header: Mapping[str, str]) -> None:
    if form == "comfyui-lora":
        tensors = _cast(to_comfyui(adapter), dtype)
        save_tensors(tensors, out, header)
        return
    with atomic_folder(out) as temporary:
        tensors = _cast(named(adapter, DIFFUSERS_PREFIX), dtype)
        save_tensors(tensors, temporary / DIFFUSERS_FILE, {**header, **diffusers_header(adapter)})


def _cast(state: State, dtype: torch.dtype) -> State:
    # Numbers alone are alphas: bfloat16 has not all of them.
    return {name: tensor.to(dtype) if tensor.dim() else tensor for name, tensor in state.items()}


def _header(checkpoint: Path, raw: bool) -> dict[str, str]:
    """Where the weights come from, for the header of the file."""
    path = checkpoint / "state.json"
    if not path.is_file():
        raise UserError(f"{checkpoint}: no state.json in it; give a folder WORK/runs/NAME/checkpoints/STEP")
    step = json.loads(path.read_text(encoding="utf-8"))["step"]
    return {"project": "illustrious-lu", "step": str(step), "weights": "raw" if raw else "averaged"}
