"""Weights on disk: diffusers' folders, and the names of the original checkpoints, which ComfyUI reads.

Only safetensors. All namings hold the same numbers in the same order, but for the matrices that are one: queries,
keys and values in the original, and in the model besides the gate and the value of the feed-forward.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.files import atomic_file, write_text
from train.model.config import CONFIG_FILE, DiTConfig
from train.model.dit import Lumina2DiT

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

State = Mapping[str, Tensor]
"""Parameters by name."""


def load_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder in the diffusers layout, under diffusers' names; one file, or shards with an index."""
    if not (folder / INDEX_FILE).exists():
        return load_file(folder / WEIGHTS_FILE)
    shards: Mapping[str, str] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    return {name: tensor for file in sorted(set(shards.values())) for name, tensor in load_file(folder / file).items()}


def load_transformer(folder: Path) -> Lumina2DiT:
    """The model of a folder in the diffusers layout, in the dtype of its file.

    A ValueError names the folder and what its weights lack, have too much, or have in another shape.
    """
    model = _skeleton(DiTConfig.from_folder(folder))
    state = load_state(folder)
    _check(state, model, folder)
    model.load_state_dict(from_diffusers(state), assign=True)
    return model


def save_transformer(state: State, config: DiTConfig, folder: Path) -> None:
    """Write a folder that diffusers' `Lumina2Transformer2DModel.from_pretrained` reads, from the model's own state.

    A ValueError says where `state` is not that of a model of `config`.
    """
    state = to_diffusers(state)
    _check(state, _skeleton(config), folder)
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / CONFIG_FILE, config.to_json())


def _skeleton(config: DiTConfig) -> Lumina2DiT:
    """A model of names and shapes alone: no memory is touched and nothing initialised."""
    with torch.device("meta"):
        return Lumina2DiT(config)


def _check(state: State, model: Lumina2DiT, folder: Path) -> None:
    """Raise ValueError where `state`, of diffusers' names, has others, or other shapes, than the model."""
    expected = {name: tuple(tensor.shape) for name, tensor in to_diffusers(model.state_dict()).items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    listed = [f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names]
    if listed:
        raise ValueError(f"{folder}: not the weights of the transformer in {CONFIG_FILE}; " + "; ".join(listed))


# Module names, diffusers' on the left. Those of a block come after its prefix, "layers.3." for instance.

_OUTSIDE_BLOCKS = {
    "x_embedder": "x_embedder",
    "time_caption_embed.caption_embedder.0": "cap_embedder.0",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
_IN_ANY_BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
_IN_MODULATED = {**_IN_ANY_BLOCK, "norm1.norm": "attention_norm1", "norm1.linear": "adaLN_modulation.1"}
_IN_CONTEXT = {**_IN_ANY_BLOCK, "norm1": "attention_norm1"}

_NAME = re.compile(r"((?:context_refiner|noise_refiner|layers)\.\d+\.|)(.+)(\.weight|\.bias)")
"""Block or nothing, module, parameter."""
_PROJECTIONS = ("attn.to_q", "attn.to_k", "attn.to_v")
_MERGED = {"attn.to_qkv": _PROJECTIONS, "feed_forward.linear_13": ("feed_forward.linear_1", "feed_forward.linear_3")}
"""Matrices of the model, and of which of diffusers' they consist."""
_MERGED_IN_ORIGINAL = {"attn.qkv": _PROJECTIONS}
_COMFY_PREFIX = "model.diffusion_model."
_UNUSED = "norm_final.weight"
"""In original checkpoints, but in no computation; ComfyUI misses it when it is not there."""


def to_diffusers(state: State) -> dict[str, Tensor]:
    """diffusers' names from the model's own; what was merged is views."""
    return _split(state, _MERGED)


def from_diffusers(state: State) -> dict[str, Tensor]:
    """The model's own names from diffusers'. Undoes `to_diffusers`."""
    return _merged(state, _MERGED)


def to_original(state: State) -> dict[str, Tensor]:
    """Original names from diffusers'. A ValueError lists what is no parameter of a Lumina-Image-2.0."""
    original = _renamed(_merged(state, _MERGED_IN_ORIGINAL), lambda table: table)
    if (like := original.get("x_embedder.bias")) is None:
        raise ValueError("missing parameters: x_embedder.bias")
    return original | {_UNUSED: torch.ones_like(like)}


def from_original(state: State) -> dict[str, Tensor]:
    """diffusers' names from the original ones, with or without ComfyUI's prefix. Undoes `to_original`."""
    plain = {name.removeprefix(_COMFY_PREFIX): tensor for name, tensor in state.items()}
    plain.pop(_UNUSED, None)
    renamed = _renamed(plain, lambda table: {theirs: ours for ours, theirs in table.items()})
    return _split(renamed, _MERGED_IN_ORIGINAL)


def _renamed(state: State, direction: Callable[[Mapping[str, str]], Mapping[str, str]]) -> dict[str, Tensor]:
    """The state under new names, each looked up in the table of its kind of block."""
    renamed, unknown = {}, []
    for name, tensor in state.items():
        block, module, parameter = match.groups() if (match := _NAME.fullmatch(name)) else ("", name, "")
        table = _OUTSIDE_BLOCKS if not block else _IN_CONTEXT if block.startswith("context") else _IN_MODULATED
        if (new := direction(table).get(module)) is None:
            unknown.append(name)
        else:
            renamed[f"{block}{new}{parameter}"] = tensor
    if unknown:
        raise ValueError(f"not parameters of a Lumina-Image-2.0 transformer: {', '.join(sorted(unknown))}")
    return renamed


def _merged(state: State, merged: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The state with several matrices as one, one below the other."""
    result = dict(state)
    for whole, parts in merged.items():
        suffixes = [f".{part}.weight" for part in parts]
        blocks = {name.removesuffix(suffix) for name in state for suffix in suffixes if name.endswith(suffix)}
        for block in sorted(blocks):
            names = [block + suffix for suffix in suffixes]
            if missing := [name for name in names if name not in state]:
                raise ValueError(f"missing parameters: {', '.join(missing)}")
            result[f"{block}.{whole}.weight"] = torch.cat([result.pop(name) for name in names])
    return result


def _split(state: State, merged: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The inverse of `_merged`."""
    result = dict(state)
    for whole, parts in merged.items():
        suffix = f".{whole}.weight"
        for name in [name for name in state if name.endswith(suffix)]:
            tensor = result.pop(name)
            # There are as many queries as the matrix has columns; gate and value are equally high.
            first = tensor.shape[1] if len(parts) == 3 else len(tensor) // 2
            others = (len(tensor) - first) // (len(parts) - 1)
            rows = tensor.split([first, *[others] * (len(parts) - 1)])
            block = name.removesuffix(suffix)
            result |= {f"{block}.{part}.weight": piece for part, piece in zip(parts, rows, strict=True)}
    return result
