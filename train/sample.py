"""Drawing: from caption embeddings to latents with an Euler sampler, and on to pictures."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from shared.errors import UserError
from train import flow
from train.cache.autoencoder import decode
from train.cache.resolution import MAX_TOKENS
from train.data.random import normal, stream_key
from train.model.dit import Lumina2DiT
from train.model.packing import Grid, PackedBatch, layout_of, pack, unpatchify
from train.settings import DrawSettings

TOKEN_BUDGET = 16_384
"""Most tokens of pictures that are drawn together, with and without their text: two of 1024 px. A GPU is busy then."""


class Picture(NamedTuple):
    """What is to be drawn."""

    caption: Tensor
    """Its embedding (tokens, dim)."""
    grid: Grid
    """Rows and columns, in tokens."""
    seed: int
    """All that its noise depends on."""


def grid_of(size: str, multiple: int) -> Grid:
    """Rows and columns, in tokens of `multiple` pixels, of a size written WIDTHxHEIGHT.

    Raises UserError for one that cannot be drawn, naming the nearest that can.
    """
    if not re.fullmatch(r"\d+x\d+", size):
        raise UserError(f"size {size!r}: give width and height in pixels, as 832x1216")
    sides = [int(side) for side in size.split("x")]
    down, up = (
        [min(max(steps, 1), MAX_TOKENS) * multiple for steps in rounded]
        for rounded in ([side // multiple for side in sides], [-(-side // multiple) for side in sides])
    )
    if sides != down:
        nearest = " or ".join(dict.fromkeys(f"{width}x{height}" for width, height in (down, up)))
        raise UserError(
            f"size {size}: width and height must be multiples of {multiple}, at most {MAX_TOKENS * multiple}; "
            f"take {nearest}"
        )
    return sides[1] // multiple, sides[0] // multiple


def draw_latents(
    model: Lumina2DiT,
    pictures: Sequence[Picture],
    negative: Tensor,
    settings: DrawSettings,
    budget: int = TOKEN_BUDGET,
    stepped: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """The latent (channels, height, width) of every picture, in the model's own scale, float32, in their order.

    Pictures of any sizes are drawn together, up to a `budget` of tokens; which ones are changes nothing but rounding.
    They are guided away from `negative`, an embedding (tokens, dim). `stepped` is told after every step of how many
    pictures it was.
    """
    for batch in _batches(pictures, len(negative), budget):
        yield from _draw(model, batch, negative, settings, stepped)


def decode_latent(vae: Any, latent: Tensor) -> Image.Image:
    """The picture of a latent in the model's scale, through an autoencoder of diffusers."""
    return Image.fromarray(decode(vae, latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)))


def _batches(pictures: Sequence[Picture], negative: int, budget: int) -> Iterator[list[Picture]]:
    """Consecutive pictures together, within the budget where there is more than one."""
    batch: list[Picture] = []
    tokens = 0
    for picture in pictures:
        own = len(picture.caption) + negative + 2 * picture.grid[0] * picture.grid[1]
        if batch and tokens + own > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(picture)
        tokens += own
    if batch:
        yield batch


@torch.no_grad()
def _draw(
    model: Lumina2DiT,
    pictures: Sequence[Picture],
    negative: Tensor,
    settings: DrawSettings,
    stepped: Callable[[int], None],
) -> list[Tensor]:
    """Draw pictures in one packed row. What is stepped through time is its patches."""
    patch, channels, device = model.config.patch_size, model.config.in_channels, next(model.parameters()).device
    noises = [_noise(picture, channels, patch) for picture in pictures]
    captions, count = [picture.caption for picture in pictures], len(pictures)
    plain = pack(noises, captions, torch.zeros(count), patch).to(device)
    both = pack(noises * 2, captions + [negative] * count, torch.zeros(2 * count), patch).to(device)
    x = plain.patches
    for t, following in pairwise(flow.schedule(settings.steps, settings.shift)):
        if t < settings.guidance_until and settings.guidance > 1:
            parts = _velocity(model, both, x.repeat(2, 1), t).split(both.image_lengths)
            of_pictures = zip(parts[:count], parts[count:], strict=True)
            velocity = torch.cat([flow.guided(*pair, settings.guidance) for pair in of_pictures])
        else:
            velocity = _velocity(model, plain, x, t)
        x = x + (following - t) * velocity
        stepped(count)
    rows = zip(x.split(plain.image_lengths), plain.grids, strict=True)
    return [unpatchify(patches, grid, patch, channels) for patches, grid in rows]


def _velocity(model: Lumina2DiT, batch: PackedBatch, patches: Tensor, t: float) -> Tensor:
    """(image tokens, patch * patch * channels), float32."""
    now = replace(batch, patches=patches, timesteps=torch.full_like(batch.timesteps, t))
    velocity: Tensor = model(now, layout_of(now)).float()
    return velocity


def _noise(picture: Picture, channels: int, patch: int) -> Tensor:
    """(channels, height, width), float32."""
    shape = torch.Size((channels, *(side * patch for side in picture.grid)))
    return torch.from_numpy(normal(stream_key(picture.seed), shape.numel())).view(shape)
