"""Drawing: from caption embeddings to pictures, with an Euler sampler."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train import flow
from train.cache.autoencoder import decode
from train.cache.sheet import wrapped
from train.data.random import normal, stream_key
from train.model.dit import Lumina2DiT
from train.model.packing import layout_of, pack, unpatchify
from train.settings import SampleSettings

LABEL_HEIGHT = 46
LINES = 3
"""Of a label, at most."""


@torch.no_grad()
def draw_latents(
    model: Lumina2DiT,
    captions: Sequence[Tensor],
    empty: Tensor,
    grid: tuple[int, int],
    settings: SampleSettings,
) -> list[Tensor]:
    """One latent (C, H, W) per caption embedding (tokens, dim), in the model's own scale, float32.

    All captions are drawn together in one packed batch, with and without their text. `grid` is the picture's
    (rows, columns) in tokens. The noise of the n-th picture depends on the seed and n alone.
    """
    config, device = model.config, next(model.parameters()).device
    shape = (config.in_channels, grid[0] * config.patch_size, grid[1] * config.patch_size)
    count = len(captions)
    x = torch.stack(
        [
            torch.from_numpy(normal(stream_key(settings.seed, index), int(np.prod(shape)))).view(shape)
            for index in range(count)
        ]
    ).to(device)
    times = flow.schedule(settings.steps, settings.shift)
    for t, following in pairwise(times):
        guided = t < settings.guidance_until and settings.guidance > 1
        texts = [*captions, *[empty] * count] if guided else captions
        inputs = [*x, *x] if guided else list(x)
        batch = pack(inputs, texts, torch.full((len(inputs),), t), config.patch_size).to(device)
        velocity = model(batch, layout_of(batch)).float().view(len(inputs), grid[0] * grid[1], -1)
        if guided:
            velocity = torch.stack(
                [
                    flow.guided(conditional, unconditional, settings.guidance)
                    for conditional, unconditional in zip(velocity[:count], velocity[count:], strict=True)
                ]
            )
        step = torch.stack([unpatchify(v, grid, config.patch_size, config.in_channels) for v in velocity])
        x = x + (following - t) * step
    return list(x)


def decode_latents(vae: Any, latents: Sequence[Tensor]) -> list[Image.Image]:
    """Pictures from latents in the model's scale, through an `AutoencoderKL`."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    return [Image.fromarray(decode(vae, latent / scale + shift)) for latent in latents]


def grid_picture(pictures: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """The pictures in rows, each with its label below."""
    columns = min(len(pictures), max(1, round(len(pictures) ** 0.5 * 1.2)))
    rows = -(-len(pictures) // columns)
    width = max(picture.width for picture in pictures) + 4
    height = max(picture.height for picture in pictures) + LABEL_HEIGHT
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = index % columns * width, index // columns * height
        sheet.paste(picture, (x + 2, y + 2))
        pen.multiline_text(
            (x + 2, y + picture.height + 4),
            "\n".join(wrapped(label, width - 4, font)[:LINES]),
            "black",
            font,
            spacing=1,
        )
    return sheet
