"""Adapters of diffusers' matrices, and the same numbers as parameters of the model, or under the names of files.

In ComfyUI's original names, queries, keys and values are one matrix: their adapters become one of three times the
rank, with the A below one another and the B along a diagonal.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import UserError
from train.model.names import MERGED, MERGED_IN_ORIGINAL, State, from_diffusers, heights, module_name, parts_of
from train.model.weights import mismatches

COMFYUI_PREFIX = "diffusion_model."


class Factors(NamedTuple):
    """The adapter of one matrix W, which is used as W + scale * b a."""

    a: Tensor
    """(rank, columns)."""
    b: Tensor
    """(rows, rank)."""
    scale: float


Adapter = Mapping[str, Factors]
"""By diffusers' names of the matrices."""


def adapter_of(weights: State, alpha: float) -> dict[str, Factors]:
    """The adapters from the model's own parameters, `lora_A` and `lora_B` by name."""
    adapter: dict[str, Factors] = {}
    for name, a in weights.items():
        module, _, parameter = name.rpartition(".")
        if parameter == "lora_A":
            b, parts = weights[f"{module}.lora_B"], parts_of(module, MERGED)
            pieces = zip(a.chunk(len(parts)), b.split(heights(len(parts), len(b), a.shape[1])), strict=True)
            adapter |= {part: Factors(*piece, alpha / b.shape[1]) for part, piece in zip(parts, pieces, strict=True)}
    return adapter


def weights_of(adapter: Adapter, scale: float) -> dict[str, Tensor]:
    """The model's own parameters, for a model with this alpha / rank. Undoes `adapter_of`.

    A ValueError says where queries, keys and values, or gate and value, have not all an adapter.
    """
    a = from_diffusers({f"{name}.weight": factors.a for name, factors in adapter.items()})
    b = from_diffusers({f"{name}.weight": factors.b * (factors.scale / scale) for name, factors in adapter.items()})
    return {f"{name.removesuffix('weight')}lora_A": tensor for name, tensor in a.items()} | {
        f"{name.removesuffix('weight')}lora_B": tensor for name, tensor in b.items()
    }


def merged(state: State, adapter: Adapter) -> dict[str, Tensor]:
    """A transformer's weights, under diffusers' names, with the adapters added to them in float32.

    Raises UserError where the transformer has no such matrices.
    """
    added = {f"{name}.weight": scale * (b.float() @ a.float()) for name, (a, b, scale) in adapter.items()}
    if problems := mismatches({name: state[name] for name in state if name in added}, added):
        raise UserError(f"the adapters are not of this transformer; {problems}")
    return {name: tensor.float() + added[name] if name in added else tensor for name, tensor in state.items()}


def named(adapter: Adapter, prefix: str) -> dict[str, Tensor]:
    """The tensors under the names that peft and diffusers give them. They leave out the scale."""
    return {
        f"{prefix}{name}.lora_{letter}.weight": tensor
        for name, factors in adapter.items()
        for letter, tensor in (("A", factors.a), ("B", factors.b))
    }


def pairs(tensors: State) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every module, in float32. A ValueError lists what is anything else."""
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    found = {module: (f"{module}.lora_A.weight", f"{module}.lora_B.weight") for module in modules}
    if odd := tensors.keys() ^ {name for pair in found.values() for name in pair}:
        raise ValueError(f"not lora_A and lora_B of a matrix: {', '.join(sorted(odd))}")
    return {module: (tensors[a].float(), tensors[b].float()) for module, (a, b) in found.items()}


def to_comfyui(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under original names. ComfyUI divides an alpha by the rank that it finds."""
    tensors: dict[str, Tensor] = {}
    for name, parts in _in_original(adapter).items():
        original = module_name(name, to_original=True)
        assert original is not None
        assert len({part.scale for part in parts}) == 1
        a, b = torch.cat([part.a for part in parts]), torch.block_diag(*(part.b for part in parts))
        tensors |= named({original: Factors(a, b, 1.0)}, COMFYUI_PREFIX)
        tensors[f"{COMFYUI_PREFIX}{original}.alpha"] = torch.tensor(parts[0].scale * len(a))
    return tensors


def from_comfyui(tensors: State) -> dict[str, Factors]:
    """The adapters from original names. A ValueError lists what is not of a Lumina-Image-2.0."""
    plain = {name.removeprefix(COMFYUI_PREFIX): tensor for name, tensor in tensors.items()}
    alphas = {name.removesuffix(".alpha"): plain.pop(name) for name in list(plain) if name.endswith(".alpha")}
    adapter: dict[str, Factors] = {}
    for original, (a, b) in pairs(plain).items():
        name = module_name(original, to_original=False)
        if name is None:
            raise ValueError(f"not a matrix of a Lumina-Image-2.0 transformer: {original}")
        scale = float(alphas[original]) / len(a) if original in alphas else 1.0
        parts = parts_of(name, MERGED_IN_ORIGINAL)
        adapter |= {part: Factors(*piece, scale) for part, piece in zip(parts, _apart(a, b, len(parts)), strict=True)}
    return adapter


def _in_original(adapter: Adapter) -> dict[str, list[Factors]]:
    """The adapters of each matrix that an original checkpoint has, under diffusers' names; parts in their order."""
    found = {name: [factors] for name, factors in adapter.items()}
    for whole, parts in MERGED_IN_ORIGINAL.items():
        for block in [name.removesuffix(parts[0]) for name in adapter if name.endswith(f".{parts[0]}")]:
            found[block + whole] = [found.pop(block + part)[0] for part in parts]
    return found


def _apart(a: Tensor, b: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """The adapter of each part of a matrix that is several: of a third of the rank where B is `to_comfyui`'s."""
    rows = b.split(heights(parts, len(b), a.shape[1]))
    if len(a) % parts == 0:
        rank = len(a) // parts
        diagonal = [below[:, index * rank : (index + 1) * rank] for index, below in enumerate(rows)]
        if torch.equal(torch.block_diag(*diagonal), b):
            return list(zip(a.chunk(parts), diagonal, strict=True))
    return [(a, below) for below in rows]
