"""A run from its settings: what it reads, what it builds, where it writes."""

from pathlib import Path

import torch

from shared.errors import UserError
from shared.tensors import CorruptTensor
from train.cache.hub import DRAWING, model_folder
from train.cache.reader import CacheReader
from train.cache.run import expected
from train.cache.settings import CacheSettings
from train.data.draws import check_captions
from train.data.phases import plan_phases
from train.loop import Trainer
from train.model.adapter_files import load_adapter
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.freeze import freeze
from train.model.lora import add_lora
from train.model.weights import load_weights
from train.samples import Sampler
from train.settings import TrainSettings


def start(work: Path, model: str, name: str, settings: TrainSettings, cached: CacheSettings | None = None) -> Path:
    """Train the run `name` of a work directory to its last step; returns its last checkpoint.

    `cached` says how the cache should have been made, by default as `cache-latents` does it by default. Raises
    UserError where model, cache, settings and an earlier part of the run do not fit together, and for a damaged cache.
    """
    try:
        return _trainer(work, model, name, settings, cached or CacheSettings()).run()
    except CorruptTensor as error:
        raise UserError(
            f"{error}\n`cache-latents verify` names all that is damaged: delete those shards, run `cache-latents`, and "
            "start the same command again; it goes on from the newest checkpoint"
        ) from error


def _trainer(work: Path, model: str, name: str, settings: TrainSettings, cached: CacheSettings) -> Trainer:
    base = model_folder(model, DRAWING)
    reader = CacheReader(work, expected(base, cached))
    check_captions(reader, settings.captions, "train.captions")
    phases = plan_phases(work, reader, settings)
    transformer = build_model(base, settings, reader)
    sampler = Sampler(settings.samples, model, work, reader)
    return Trainer(work / "runs" / name, settings, reader, phases, transformer, sampler)


def build_model(base: Path, settings: TrainSettings, reader: CacheReader) -> Lumina2DiT:
    """The transformer to train, in float32, checked against the cache; what does not learn wants no gradient.

    Raises UserError where settings exclude one another or do not fit the model.
    """
    _check(settings)
    folder = base / "transformer"
    config = DiTConfig.from_folder(folder)
    if (config.cap_feat_dim, config.in_channels) != (reader.text_dim, reader.channels):
        raise UserError(
            f"{folder} takes captions of width {config.cap_feat_dim} and latents of "
            f"{config.in_channels} channels, the cache holds {reader.text_dim} and {reader.channels}; "
            "run cache-latents with this model first"
        )
    model = load_weights(settings.weights or str(folder), config).float()
    if settings.init == "random":
        torch.manual_seed(settings.seed)
        model.init_weights()
    freeze(model, settings.freeze)
    if settings.lora is not None:
        add_lora(model, settings.lora, settings.seed)
        if settings.lora.init is not None:
            load_adapter(model, Path(settings.lora.init), settings.lora.alpha / settings.lora.rank)
    return model


def _check(settings: TrainSettings) -> None:
    """Raise UserError where settings exclude one another."""
    excluded = {
        "train.init = random": (settings.init == "random", ("train.weights", settings.weights)),
        "train.lora, which leaves the model as it is,": (settings.lora, ("train.freeze", settings.freeze)),
        "train.precision = float8": (settings.precision == "float8", ("train.lora", settings.lora)),
        "train.masters = bfloat16": (settings.masters == "bfloat16", ("train.lora", settings.lora)),
    }
    for what, (given, (other, value)) in excluded.items():
        if given and value:
            raise UserError(f"{what} and {other} exclude one another; leave out one of them")
