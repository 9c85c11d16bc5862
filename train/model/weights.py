"""Weights on disk: diffusers' folders, and single files in any naming. Only safetensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic_file, write_text
from shared.fingerprint import differences
from train.cache.hub import downloaded
from train.model.config import CONFIG_FILE, DiTConfig
from train.model.dit import Lumina2DiT
from train.model.names import State, from_diffusers, from_original, to_diffusers

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError where it is none: others may hold code that would be run."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: only .safetensors files are read; convert it first")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error}); is it whole?") from None


def load_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder in the diffusers layout, under diffusers' names."""
    return read_sharded(folder / WEIGHTS_FILE)


def read_sharded(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the shards that stand in its place with an index."""
    if not _index_of(file).exists():
        return read_tensors(file)
    shards: Mapping[str, str] = json.loads(_index_of(file).read_text(encoding="utf-8"))["weight_map"]
    return {name: x for shard in sorted(set(shards.values())) for name, x in read_tensors(file.parent / shard).items()}


def shard_of(file: Path, number: int, count: int) -> Path:
    """The name of a shard, counted from 0, as diffusers has it; the file's own where there is one alone."""
    return file if count == 1 else file.with_name(f"{file.stem}-{number + 1:05}-of-{count:05}{file.suffix}")


def save_index(file: Path, count: int) -> Path | None:
    """Write the index of so many shards of a file, as diffusers reads it; returns it, or None for one shard."""
    if count == 1:
        return None
    names: dict[str, str] = {}
    size = 0
    for number in range(count):
        shard = shard_of(file, number, count)
        with safe_open(shard, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), shard.name)
        size += shard.stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": names}
    write_text(_index_of(file), json.dumps(index, indent=2, sort_keys=True) + "\n")
    return _index_of(file)


def _index_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.index.json")


def load_transformer(folder: Path) -> Lumina2DiT:
    """The model of a folder in the diffusers layout, in the dtype of its file.

    A UserError names the folder and what its weights lack, have too much, or have in another shape.
    """
    return model_of(load_state(folder), DiTConfig.from_folder(folder), folder)


def load_weights(source: str, config: DiTConfig) -> Lumina2DiT:
    """The model of `config` with other weights, in the dtype of their file.

    `source` is a transformer in the diffusers layout, with or without the pipeline around it; a checkpoint of a run, of
    which the averaged weights are taken; a hub's repository of either; or one .safetensors file under original names,
    with or without ComfyUI's prefix, or under diffusers'. Raises UserError that names the file and what does not fit.
    """
    path = Path(source)
    if path.is_file():
        state = read_tensors(path)
        if "time_caption_embed.caption_embedder.1.weight" not in state:
            state = _from_original(state, path)
        return model_of(state, config, path)
    folder = _transformer_folder(path if path.is_dir() else downloaded(source, HUB_FILES))
    # Nothing depends on the size of pictures it was made for.
    expected, found = ({**asdict(c), "sample_size": None} for c in (config, DiTConfig.from_folder(folder)))
    if problems := differences(expected, found):
        raise UserError(
            f"{folder}/{CONFIG_FILE} is not that of the model folder:\n  "
            + "\n  ".join(problems)
            + "\ngive the pipeline of these weights as --model"
        )
    return model_of(load_state(folder), config, folder)


HUB_FILES = ("transformer/*", CONFIG_FILE, "diffusion_pytorch_model*.safetensors*")
"""What `load_weights` reads of a repository."""


def save_transformer(state: State, config: DiTConfig, folder: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a folder that diffusers' `Lumina2Transformer2DModel.from_pretrained` reads, from the model's own state.

    A UserError says where `state` is not that of a model of `config`.
    """
    state = to_diffusers(state)
    _check(state, _skeleton(config), folder)
    save_tensors(state, folder / WEIGHTS_FILE, metadata)
    write_text(folder / CONFIG_FILE, config.to_json())


def save_tensors(state: State, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, atomically. Raises UserError where that is not possible, as on a full disk."""
    with atomic_file(file) as temporary:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise UserError(f"{file}: {error}; make room, or give another place, and start the command again") from None


def _transformer_folder(folder: Path) -> Path:
    """The folder of the weights themselves."""
    for part in ("transformer_ema", "transformer", "."):
        if (folder / part / CONFIG_FILE).is_file():
            return folder / part
    raise UserError(
        f"{folder}: no {CONFIG_FILE} and no transformer/{CONFIG_FILE} in it; give a transformer in the diffusers "
        "layout, a checkpoint WORK/runs/NAME/checkpoints/STEP, or a .safetensors file"
    )


def _from_original(state: State, file: Path) -> dict[str, Tensor]:
    try:
        return from_original(state)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def model_of(state: State, config: DiTConfig, path: Path) -> Lumina2DiT:
    """The model of weights under diffusers' names, which a UserError says are those of `path` where they do not fit."""
    model = _skeleton(config)
    _check(state, model, path)
    model.load_state_dict(from_diffusers(state), assign=True)
    return model


def _skeleton(config: DiTConfig) -> Lumina2DiT:
    """A model of names and shapes alone: no memory is touched and nothing initialised."""
    with torch.device("meta"):
        return Lumina2DiT(config)


def _check(state: State, model: Lumina2DiT, path: Path) -> None:
    """Raise UserError where `state`, of diffusers' names, has others, or other shapes, than the model."""
    if problems := mismatches(to_diffusers(model.state_dict()), state):
        raise UserError(f"{path}: not the weights of the transformer in {CONFIG_FILE}; {problems}")


def mismatches(expected: State, found: State) -> str:
    """What of the names and shapes is not as expected; empty where all are."""
    common = expected.keys() & found.keys()
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {name for name in common if expected[name].shape != found[name].shape},
    }
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names)
