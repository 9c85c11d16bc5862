"""A run from its settings: what it reads, what it builds, where it writes."""

from pathlib import Path

import torch
import yaml

from shared.errors import UserError
from shared.files import write_text
from train.cache.hub import model_folder
from train.cache.reader import CacheReader
from train.data.draws import check_captions
from train.data.phases import plan_phases
from train.loop import Trainer
from train.model.dit import Lumina2DiT
from train.model.weights import load_transformer
from train.samples import Sampler
from train.settings import TrainSettings


def start(work: Path, model: str, name: str, settings: TrainSettings) -> Path:
    """Train the run `name` of a work directory to its last step; returns its last checkpoint.

    Raises UserError where model, cache, settings and an earlier part of the run do not fit together.
    """
    base = model_folder(model)
    reader = CacheReader(work)
    check_captions(reader, settings.captions)
    phases = plan_phases(work, reader, settings)
    transformer = build_model(base, settings, reader)
    sampler = Sampler(settings.samples, base, reader)
    folder = work / "runs" / name
    write_text(folder / "config.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    return Trainer(folder, settings, reader, phases, transformer, sampler).run()


def build_model(base: Path, settings: TrainSettings, reader: CacheReader) -> Lumina2DiT:
    """The transformer to train, in float32, checked against the cache."""
    model = load_transformer(base / "transformer").float()
    config = model.config
    if (config.cap_feat_dim, config.in_channels) != (reader.text_dim, reader.channels):
        raise UserError(
            f"{base}/transformer takes captions of width {config.cap_feat_dim} and latents of "
            f"{config.in_channels} channels, the cache holds {reader.text_dim} and {reader.channels}; "
            "run cache-latents with this model first"
        )
    if settings.init == "random":
        torch.manual_seed(settings.seed)
        model.init_weights()
    return model
