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

from train.model import recompute
from train.model.blocks import (
    Condition,
    ContextBlock,
    FeedForward,
    ModulatedBlock,
    ModulatedNorm,
    RMSNorm,
)
from train.model.config import DiTConfig
from train.model.norm import Rows
from train.model.packing import Layout, PackedBatch, Segments
from train.model.rope import Rotation, check_positions, rotation
from train.settings import Recompute

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
        # Not by an index, whose backward adds up the rows of a sample one after the other.
        scale = F.embedding(condition.rows.sample, self.linear_1(condition.time))
        normed = F.layer_norm(x, x.shape[-1:], eps=OUTPUT_NORM_EPS)
        # Not times (1 + scale): near zero, bfloat16 scales would drown in the one.
        out: Tensor = self.linear_2(torch.addcmul(normed, normed, scale))
        return out


class Lumina2DiT(nn.Module):
    """Predicts the velocity (data - noise) of every image token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "nothing"
        """To be set before `compile_blocks`."""
        self._compiled = False
        refiners = range(config.num_refiner_layers)
        self.x_embedder = nn.Linear(config.patch_dim, config.hidden_size)
        self.time_caption_embed = TimeCaptionEmbedder(config)
        self.noise_refiner = nn.ModuleList(ModulatedBlock(config) for _ in refiners)
        self.context_refiner = nn.ModuleList(ContextBlock(config) for _ in refiners)
        self.layers = nn.ModuleList(ModulatedBlock(config) for _ in range(config.num_layers))
        self.norm_out = OutputLayer(config)

    def forward(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Velocities (image tokens, patch * patch * out_channels), in the order of `batch.patches`.

        Computed in the dtype of the weights. `layout` is `layout_of(batch)`. A batch beyond the model's positions is a
        ValueError.
        """
        check_positions(batch.text_lengths, batch.grids, self.config.axes_lens)
        embed = self.time_caption_embed
        time = F.silu(embed.timestep_embedder(batch.timesteps))
        cosine, sine = rotation(layout.positions, self.config.axes_dim_rope)

        text = embed.caption_embedder(batch.text.to(self.dtype))
        by = cosine[layout.text_rows], sine[layout.text_rows]
        for block in self.context_refiner:
            text = self._run(block, text, layout.text, by)

        image = self.x_embedder(batch.patches.to(self.dtype))
        by = cosine[layout.image_rows], sine[layout.image_rows]
        image_condition = Condition(time, Rows(layout.image_sample, layout.image.offsets))
        for block in self.noise_refiner:
            image = self._run(block, image, layout.image, by, image_condition)

        joint = text.new_zeros(len(layout.sample), self.config.hidden_size)
        joint = joint.index_copy(0, layout.text_rows, text).index_copy(0, layout.image_rows, image)
        by, condition = (cosine, sine), Condition(time, Rows(layout.sample, layout.joint.offsets))
        for block in self.layers:
            joint = self._run(block, joint, layout.joint, by, condition)
        out: Tensor = self.norm_out(joint.index_select(0, layout.image_rows), image_condition)
        return out

    def compile_blocks(self, compiler: str = "inductor") -> None:
        """Compile the blocks, each kind once, for any number of tokens and samples. Names and weights stay."""
        # One sample, no gradients, another kind of block, larger pictures: each may be a graph of the same code.
        torch._dynamo.config.recompile_limit = 64
        for block in (*self.context_refiner, *self.noise_refiner, *self.layers):
            block.recompute = self.recompute
            block.compile(fullgraph=True, backend=compiler)
        self._compiled = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of what goes in."""
        return self.x_embedder.weight.dtype

    def _run(self, block: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self._compiled:
            _mark_dynamic(*arguments)
        return recompute.run(block, self.recompute, *arguments)

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
        # Gate and value are two matrices there: Xavier's bound comes from the height of one.
        bound = math.sqrt(6 / (self.config.hidden_size + self.config.ffn_dim))
        for module in self.modules():
            if isinstance(module, FeedForward):
                nn.init.uniform_(module.linear_13.weight, -bound, bound)
        modulations = [module.linear for module in self.modules() if isinstance(module, ModulatedNorm)]
        for linear in (*modulations, self.norm_out.linear_1, self.norm_out.linear_2):
            nn.init.zeros_(linear.weight)
        self.time_caption_embed.init_weights()


def _mark_dynamic(x: Tensor, segments: Segments, by: Rotation, condition: Condition | None = None) -> None:
    """Say that the numbers of tokens and samples change from batch to batch."""
    conditions = () if condition is None else (condition.time, *condition.rows)
    for tensor in (x, segments.offsets, *by, *conditions):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
