"""Lumina-Image-2.0 over packed rows.

The same function as diffusers' `Lumina2Transformer2DModel`, of the same parameters under the same names, but a
batch may mix any resolutions and caption lengths, and no padding is computed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.model.blocks import (
    Attention,
    Condition,
    ContextBlock,
    ModulatedBlock,
    ModulatedNorm,
    RMSNorm,
    scaled,
)
from train.model.config import DiTConfig
from train.model.packing import Layout, PackedBatch
from train.model.rope import check_positions, rotation

SINUSOIDS = 256
"""Width of the sinusoidal time features."""
OUTPUT_NORM_EPS = 1e-6


def time_features(timesteps: Tensor) -> Tensor:
    """(samples,) -> (samples, 256) float32: cosines, then sines, of t times 10000^(-i / 128)."""
    half = SINUSOIDS // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(steps * (-math.log(10_000) / half))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class TimeEmbedder(nn.Module):
    """Timesteps to embeddings."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOIDS, config.time_dim)
        self.linear_2 = nn.Linear(config.time_dim, config.time_dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(samples,) -> (samples, time_dim)."""
        features = time_features(timesteps).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return out


class TimeCaptionEmbedder(nn.Module):
    """Holds the two embedders under diffusers' names."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.timestep_embedder = TimeEmbedder(config)
        self.caption_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.hidden_size)
        )

    def init_weights(self) -> None:
        """Small normal weights, as the official `models/model.py` draws them."""
        caption: Any = self.caption_embedder[1]
        nn.init.trunc_normal_(caption.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_2.weight, std=0.02)


class OutputLayer(nn.Module):
    """Norm without weights, scaled by the sample's time, then a linear layer to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.time_dim, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.out_dim)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """(tokens, hidden) -> (tokens, out_dim)."""
        scale = condition.membership @ self.linear_1(condition.time)
        normed = F.layer_norm(x, x.shape[-1:], eps=OUTPUT_NORM_EPS)
        out: Tensor = self.linear_2(scaled(normed, scale))
        return out


class Lumina2DiT(nn.Module):
    """Predicts the velocity (data - noise) of every image token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        """Recompute every block in the backward pass: a third more work for a fraction of the memory."""
        refiners = range(config.num_refiner_layers)
        self.x_embedder = nn.Linear(config.patch_dim, config.hidden_size)
        self.time_caption_embed = TimeCaptionEmbedder(config)
        self.noise_refiner = nn.ModuleList(ModulatedBlock(config) for _ in refiners)
        self.context_refiner = nn.ModuleList(ContextBlock(config) for _ in refiners)
        self.layers = nn.ModuleList(ModulatedBlock(config) for _ in range(config.num_layers))
        self.norm_out = OutputLayer(config)

    def forward(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Velocities (image tokens, patch * patch * out_channels), in the order of `batch.patches`.

        `layout` is `layout_of(batch)`. A batch beyond the model's positions is a ValueError.
        """
        check_positions(batch.text_lengths, batch.grids, self.config.axes_lens)
        embed = self.time_caption_embed
        time = F.silu(embed.timestep_embedder(batch.timesteps))
        membership = layout.sample[:, None] == torch.arange(len(time), device=time.device)
        condition = Condition(time, membership.to(time.dtype))
        cosine, sine = rotation(layout.positions, self.config.axes_dim_rope)

        text = embed.caption_embedder(batch.text)
        by = cosine[layout.text_rows], sine[layout.text_rows]
        for block in self.context_refiner:
            text = self._run(block, text, layout.text, by)

        image = self.x_embedder(batch.patches)
        by = cosine[layout.image_rows], sine[layout.image_rows]
        image_condition = condition.of(layout.image_rows)
        for block in self.noise_refiner:
            image = self._run(block, image, layout.image, by, image_condition)

        joint = text.new_empty(len(layout.sample), self.config.hidden_size)
        joint = joint.index_copy(0, layout.text_rows, text).index_copy(0, layout.image_rows, image)
        by = cosine, sine
        for block in self.layers:
            joint = self._run(block, joint, layout.joint, by, condition)
        out: Tensor = self.norm_out(joint.index_select(0, layout.image_rows), image_condition)
        return out

    def _run(self, block: Callable[..., Tensor], *arguments: object) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*arguments)
        # No random numbers are drawn inside a block, so there is no generator state to keep.
        out: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return out

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch, as the official `models/model.py` does.

        Modulation and output start at zero: modulated blocks begin as the identity, predictions as zero.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Queries, keys and values are one matrix there: Xavier's bound comes from its full height.
        bound = math.sqrt(6 / (2 * self.config.hidden_size + 2 * self.config.kv_dim))
        for attention in (module for module in self.modules() if isinstance(module, Attention)):
            for projection in (attention.to_q, attention.to_k, attention.to_v):
                nn.init.uniform_(projection.weight, -bound, bound)
        modulations = [module.linear for module in self.modules() if isinstance(module, ModulatedNorm)]
        for linear in (*modulations, self.norm_out.linear_1, self.norm_out.linear_2):
            nn.init.zeros_(linear.weight)
        self.time_caption_embed.init_weights()
