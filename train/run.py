"""A run from its settings: what it reads, what it builds, where it writes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from shared.errors import UserError
from shared.tensors import CorruptTensor
from train.cache.hub import model_folder
from train.cache.manifest import read_about
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


def start(
    work: Path, model: str, name: str, settings: TrainSettings, cache_settings: CacheSettings | None = None
) -> Path:
    """Train the run `name` of a work directory to its last step; returns its last checkpoint.

    The cache must be that of the model, and of the cache's settings where they are given.

    Raises UserError where model, cache, settings and an earlier part of the run do not fit together, and where a tensor
    of the cache is not what was written.
    """
    base = model_folder(model)
    reader = CacheReader(work)
    check_captions(reader, settings.captions)
    phases = plan_phases(work, reader, settings)
    folder = work / "runs" / name
    with ThreadPoolExecutor(1) as pool:
        # Reading the encoders' weights takes seconds, in which the transformer is loaded.
        checked = pool.submit(lambda: read_about(work, expected(base, cache_settings)))
        transformer = build_model(base, settings, reader)
        checked.result()
    try:
        sampler = Sampler(settings.samples, base, reader)
        return Trainer(folder, settings, reader, phases, transformer, sampler).run()
    except CorruptTensor as error:
        raise UserError(
            f"{error}\nthe newest checkpoint has nothing of it: put that file back as it was, or delete it and run "
            "`cache-latents`, then start the same command again"
        ) from error


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
    }
    for what, (given, (other, value)) in excluded.items():
        if given and value:
            raise UserError(f"{what} and {other} exclude one another; leave out one of them")
