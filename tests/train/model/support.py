"""A miniature model and batches for it, shared by the tests of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch

from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.lora import add_lora
from train.model.names import to_diffusers
from train.model.packing import PackedBatch, layout_of, pack, unpatchify
from train.settings import LoraSettings

CONFIG = DiTConfig(
    cap_feat_dim=20,
    hidden_size=48,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=4,
    num_kv_heads=2,
    in_channels=4,
    multiple_of=16,
    axes_dim_rope=(4, 4, 4),
    axes_lens=(40, 16, 24),
)

GPU_CONFIG = DiTConfig(
    cap_feat_dim=64,
    hidden_size=384,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=4,
    num_kv_heads=2,
)

Sample = tuple[int, tuple[int, int]]
"""Caption tokens, and image rows and columns in tokens."""

MIXED: tuple[Sample, ...] = ((7, (4, 6)), (1, (1, 1)), (39, (16, 24)), (7, (6, 4)), (20, (2, 9)))


def random_model(config: DiTConfig = CONFIG) -> Lumina2DiT:
    """A model in which every parameter is random: nothing hides behind the zeros and ones of an initialisation."""
    model = Lumina2DiT(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter.shape[1] ** 0.5 if noise.dim() == 2 else 0.3 * noise + ("norm" in name)
    return model


def diffusers_model(model: Lumina2DiT) -> Any:
    """diffusers' model with the same weights, without adapters."""
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.Lumina2Transformer2DModel(**asdict(model.config))
    state = {name: tensor for name, tensor in model.state_dict().items() if "lora" not in name}
    reference.load_state_dict(to_diffusers(state))
    return reference


LORA = LoraSettings(rank=3, alpha=5.0)


def random_lora(settings: LoraSettings = LORA) -> Lumina2DiT:
    """A random model with random adapters."""
    model = random_model()
    add_lora(model, settings, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in learning(model).values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def learning(model: Lumina2DiT) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def inputs_of(sample: Sample, config: DiTConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random latent, caption and timestep, which depend on the sample's sizes alone."""
    text, (rows, columns) = sample
    generator = torch.Generator().manual_seed(text * 10_000 + rows * 100 + columns)
    size = (config.in_channels, rows * config.patch_size, columns * config.patch_size)
    return (
        torch.randn(size, generator=generator),
        torch.randn(text, config.cap_feat_dim, generator=generator),
        torch.rand((), generator=generator),
    )


def batch_of(samples: Sequence[Sample], config: DiTConfig = CONFIG) -> PackedBatch:
    """The random inputs of these samples, packed."""
    latents, captions, times = zip(*(inputs_of(sample, config) for sample in samples), strict=True)
    return pack(latents, captions, torch.stack(times), config.patch_size)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Equal names and equal bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def reference_prediction(reference: Any, sample: Sample) -> torch.Tensor:
    """What diffusers' model predicts for one sample, (channels, height, width)."""
    latent, caption, time = inputs_of(sample)
    prediction: torch.Tensor = reference(latent[None], time[None], caption[None], torch.ones(1, len(caption)).long())[0]
    return prediction[0]


def predictions(model: Lumina2DiT, samples: Sequence[Sample] = MIXED) -> list[torch.Tensor]:
    """What our model predicts for samples in one row, each (channels, height, width)."""
    batch = batch_of(samples, model.config)
    parts = model(batch, layout_of(batch)).split(list(batch.image_lengths))
    patch, channels = model.config.patch_size, model.config.in_channels
    return [unpatchify(part, grid, patch, channels) for part, grid in zip(parts, batch.grids, strict=True)]


def assert_same_predictions(model: Lumina2DiT, reference: Any) -> None:
    """Our model and diffusers' compute the same."""
    with torch.no_grad():
        for sample, found in zip(MIXED, predictions(model), strict=True):
            assert relative(found, reference_prediction(reference, sample)) < 1e-5
