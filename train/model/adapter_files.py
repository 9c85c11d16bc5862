"""Adapters on disk, in the naming of peft, of diffusers, or of ComfyUI.

    adapter/                        what peft's `PeftModel.from_pretrained` reads: a checkpoint's
      adapter_model.safetensors     base_model.model.layers.0.attn.to_q.lora_A.weight, ...
      adapter_config.json           rank, alpha, which matrices, and what they were added to

diffusers' `load_lora_weights` wants the tensors with another prefix, and the configuration in the file's header.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import UserError
from shared.files import write_text
from train.model.adapters import (
    COMFYUI_PREFIX,
    Adapter,
    Factors,
    adapter_of,
    from_comfyui,
    named,
    pairs,
    weights_of,
)
from train.model.dit import Lumina2DiT
from train.model.names import State
from train.model.weights import mismatches, read_tensors, save_tensors

PEFT_FILE, PEFT_CONFIG, PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
DIFFUSERS_FILE, DIFFUSERS_PREFIX = "pytorch_lora_weights.safetensors", "transformer."
DIFFUSERS_HEADER = "lora_adapter_metadata"


def save_adapter(weights: State, alpha: float, folder: Path, base: str | None) -> None:
    """Write the model's own `lora_A` and `lora_B` as the folder that peft reads.

    `base` names the weights that they were added to; None: those of the model folder.
    """
    adapter = adapter_of(weights, alpha)
    save_tensors(named(adapter, PEFT_PREFIX), folder / PEFT_FILE)
    save_peft_config(adapter, folder, base)


def save_peft_config(adapter: Adapter, folder: Path, base: str | None) -> Path:
    """Write what peft must know of an adapter beside its tensors; returns the file."""
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, **_config(adapter)}
    write_text(folder / PEFT_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder / PEFT_CONFIG


def base_of(folder: Path) -> str | None:
    """The `base` that `save_adapter` was told."""
    base: str | None = _peft_config(folder)["base_model_name_or_path"]
    return base


def is_adapter(path: Path) -> bool:
    """Whether a file or folder holds adapters, and not the matrices themselves."""
    if path.is_dir():
        return any((path / file).is_file() for file in (PEFT_FILE, DIFFUSERS_FILE))
    try:
        with safe_open(path, "pt") as opened:
            return any("lora" in name for name in opened.keys())  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError):  # Whoever reads it says what is wrong with it.
        return False


def read_adapter(path: Path) -> dict[str, Factors]:
    """The adapters of a file or folder in any of the namings, in float32. A UserError names the file that is none."""
    files = [path] if path.is_file() else [path / PEFT_FILE, path / DIFFUSERS_FILE]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{path}: no {PEFT_FILE} and no {DIFFUSERS_FILE} in it; give an adapter's file or folder")
    tensors, alpha = read_tensors(file), _alpha(file)
    try:
        if any(name.startswith(COMFYUI_PREFIX) for name in tensors):
            return from_comfyui(tensors)
        plain = {name.removeprefix(PEFT_PREFIX).removeprefix(DIFFUSERS_PREFIX): x for name, x in tensors.items()}
        return {name: Factors(a, b, alpha / len(a) if alpha else 1.0) for name, (a, b) in pairs(plain).items()}
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def read_weights(path: Path, scale: float) -> dict[str, Tensor]:
    """The model's own `lora_A` and `lora_B` from a file or folder; `scale` is the model's alpha / rank."""
    adapter = read_adapter(path)
    try:
        return weights_of(adapter, scale)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_adapter(model: Lumina2DiT, path: Path, scale: float) -> None:
    """Give the adapters of a model, of this alpha / rank, the values of a file or folder.

    Raises UserError where that has others.
    """
    found = read_weights(path, scale)
    expected = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if problems := mismatches(expected, found):
        ranks = sorted({tensor.shape[1] for name, tensor in found.items() if name.endswith("lora_B")})
        raise UserError(
            f"{path}: its adapters, of rank {', '.join(map(str, ranks))}, are not those of train.lora; {problems}"
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(found[name])


def diffusers_header(adapter: Adapter) -> dict[str, str]:
    """What the header of a file for diffusers says beside the tensors, which leave out the scale."""
    config = {f"{DIFFUSERS_PREFIX}{key}": value for key, value in _config(adapter).items()}
    return {DIFFUSERS_HEADER: json.dumps(config, sort_keys=True)}


def _config(adapter: Adapter) -> dict[str, Any]:
    """What peft must know of adapters that all have one rank and scale."""
    factors = next(iter(adapter.values()))
    rank = len(factors.a)
    # Behind the name of the block, for every block has them.
    targets = sorted({name.split(".", 2)[2] for name in adapter})
    return {"r": rank, "lora_alpha": factors.scale * rank, "target_modules": targets}


def _alpha(file: Path) -> float | None:
    """The alpha that belongs to a file in peft's or diffusers' naming; None stands for the rank."""
    if file.name == PEFT_FILE:
        config = _peft_config(file.parent)
    else:
        with safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(DIFFUSERS_HEADER, "{}"))
        config = {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in header.items()}
    if odd := [key for key in ("use_rslora", "use_dora", "alpha_pattern") if config.get(key)]:
        raise UserError(f"{file}: adapters with {', '.join(odd)} are not supported")
    return config.get("lora_alpha")


def _peft_config(folder: Path) -> dict[str, Any]:
    file = folder / PEFT_CONFIG
    if not file.is_file():
        raise UserError(f"{file}: no such file; it belongs to {PEFT_FILE}, and says how much the adapters weigh")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config
