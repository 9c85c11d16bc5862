"""Weights out: what others load is made of a checkpoint."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from shared.errors import UserError
from shared.files import atomic_folder
from train.cache.hub import model_folder
from train.loading import checkpoint_adapter, checkpoint_state, origin
from train.model.adapter_files import DIFFUSERS_FILE, DIFFUSERS_PREFIX, diffusers_header
from train.model.adapters import Adapter, named, to_comfyui
from train.model.config import DiTConfig
from train.model.names import State, from_diffusers, to_original
from train.model.weights import save_tensors, save_transformer
from train.settings import ExportDtype, ExportFormat


def write(checkpoint: Path, out: Path, model: str, *, form: ExportFormat, dtype: ExportDtype, raw: bool) -> None:
    """Write the averaged weights of a checkpoint, or the raw ones, to `out`, which only then appears.

    Adapters are added to what they were trained with, in float32, unless the format is of adapters alone. `model` is
    the pipeline that was trained. Raises UserError where the checkpoint has no such weights.
    """
    if form.startswith("comfyui") and out.suffix != ".safetensors":
        raise UserError(f"{out}: ComfyUI loads a file; call it {out.name}.safetensors")
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    header = {"project": "illustrious-lu", **origin(checkpoint, raw)}
    if form.endswith("-lora"):
        _write_adapter(checkpoint_adapter(checkpoint, raw), out, form, kind, header)
        return
    base = model_folder(model)
    config = DiTConfig.from_folder(base / "transformer")
    state = _cast(checkpoint_state(checkpoint, base, raw), kind)
    if form == "comfyui":
        save_tensors(to_original(state), out, header)
    else:
        _write_pipeline(state, config, base, out, header)


def _write_pipeline(state: State, config: DiTConfig, base: Path, out: Path, header: Mapping[str, str]) -> None:
    """Copy the pipeline folder with this transformer in place of its own."""
    with atomic_folder(out) as temporary:
        for part in sorted(base.iterdir()):
            if part.is_dir() and part.name != "transformer" and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        shutil.copy(base / "model_index.json", temporary)
        save_transformer(from_diffusers(state), config, temporary / "transformer", header)


def _write_adapter(
    adapter: Adapter, out: Path, form: ExportFormat, dtype: torch.dtype, header: Mapping[str, str]
) -> None:
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
