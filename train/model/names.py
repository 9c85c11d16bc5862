"""Three namings of the weights: the model's own, diffusers', and the original checkpoints', which ComfyUI reads.

All hold the same numbers in the same order, but for the matrices that are one: queries, keys and values in the
original, and in the model besides the gate and the value of the feed-forward.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""Parameters by name."""

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

_BLOCK = re.compile(r"(?:context_refiner|noise_refiner|layers)\.\d+\.|")
_COMFY_PREFIX = "model.diffusion_model."
_UNUSED = "norm_final.weight"
"""In original checkpoints, but in no computation; ComfyUI misses it when it is not there."""

Merged = Mapping[str, Sequence[str]]
"""Matrices that are several of diffusers', one below the other."""

_PROJECTIONS = ("attn.to_q", "attn.to_k", "attn.to_v")
MERGED: Merged = {
    "attn.to_qkv": _PROJECTIONS,
    "feed_forward.linear_13": ("feed_forward.linear_1", "feed_forward.linear_3"),
}
"""Those of the model."""
MERGED_IN_ORIGINAL: Merged = {"attn.qkv": _PROJECTIONS}
"""Those of original checkpoints, under diffusers' names for all around them."""


def to_diffusers(state: State) -> dict[str, Tensor]:
    """diffusers' names from the model's own; what was merged is views."""
    return _split(state, MERGED)


def from_diffusers(state: State) -> dict[str, Tensor]:
    """The model's own names from diffusers'. Undoes `to_diffusers`."""
    return _merged(state, MERGED)


def to_original(state: State) -> dict[str, Tensor]:
    """Original names from diffusers'. A ValueError lists what is no parameter of a Lumina-Image-2.0."""
    original = _renamed(_merged(state, MERGED_IN_ORIGINAL), to_original=True)
    if (like := original.get("x_embedder.bias")) is None:
        raise ValueError("missing parameters: x_embedder.bias")
    return original | {_UNUSED: torch.ones_like(like)}


def from_original(state: State) -> dict[str, Tensor]:
    """diffusers' names from the original ones. Undoes `to_original`.

    Where names have ComfyUI's prefix for the transformer of a checkpoint, those without it are of other models.
    """
    plain = {name[len(_COMFY_PREFIX) :]: state[name] for name in state if name.startswith(_COMFY_PREFIX)}
    plain = plain or dict(state)
    plain.pop(_UNUSED, None)
    return _split(_renamed(plain, to_original=False), MERGED_IN_ORIGINAL)


def module_name(module: str, *, to_original: bool) -> str | None:
    """The original name of a module from diffusers' (`attn.qkv` for what is merged), or back; None: there is none."""
    match = _BLOCK.match(module)
    block = match.group() if match else ""
    table = _OUTSIDE_BLOCKS if not block else _IN_CONTEXT if block.startswith("context") else _IN_MODULATED
    direction = table if to_original else {original: name for name, original in table.items()}
    new = direction.get(module.removeprefix(block))
    return None if new is None else block + new


def parts_of(module: str, merged: Merged) -> list[str]:
    """diffusers' names of the matrices that a module consists of: its own alone, where it is not a merged one."""
    for whole, parts in merged.items():
        if module.endswith(f".{whole}"):
            return [module.removesuffix(whole) + part for part in parts]
    return [module]


def heights(parts: int, rows: int, columns: int) -> list[int]:
    """The rows of each part of a matrix that is several."""
    # There are as many queries as the matrix has columns; gate and value are equally high.
    first = columns if parts == 3 else rows // parts
    return [first, *[(rows - first) // (parts - 1)] * (parts - 1)] if parts > 1 else [rows]


def _renamed(state: State, *, to_original: bool) -> dict[str, Tensor]:
    """The state under the names of the other naming."""
    renamed, unknown = {}, []
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        new = module_name(module, to_original=to_original)
        if new is None or parameter not in ("weight", "bias"):
            unknown.append(name)
        else:
            renamed[f"{new}.{parameter}"] = tensor
    if unknown:
        raise ValueError(f"not parameters of a Lumina-Image-2.0 transformer: {', '.join(sorted(unknown))}")
    return renamed


def _merged(state: State, merged: Merged) -> dict[str, Tensor]:
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


def _split(state: State, merged: Merged) -> dict[str, Tensor]:
    """The inverse of `_merged`."""
    result = {}
    for name, tensor in state.items():
        parts = parts_of(name.removesuffix(".weight"), merged)
        if len(parts) == 1:
            result[name] = tensor
            continue
        rows = heights(len(parts), *tensor.shape)
        if sum(rows) != len(tensor) or min(rows) < 1:
            raise ValueError(f"{name}: {tuple(tensor.shape)} does not divide into {', '.join(parts)}")
        result |= {f"{part}.weight": piece for part, piece in zip(parts, tensor.split(rows), strict=True)}
    return result
