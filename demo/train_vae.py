"""Trains the autoencoder of `tiny-lumina`, which is shipped in `demo/weights/vae/`.

    python -m demo.train_vae --minutes 6                                   # one GPU
    python -m demo.train_vae --pictures 100 --steps 5 --batch 2 --out /tmp/vae     # a dry run on a CPU

It is diffusers' `AutoencoderKL` with 16 channels at 1/8, as FLUX's is, but with 3.3 million parameters. It is trained
on drawings of random characters, never on the twelve of the demo, and for a fifth on abstract pictures, so that
pictures of another kind survive it too.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from demo.characters import random_character, random_scene
from demo.drawing import draw

SIDE = 320
"""Of the square the pictures are stored in; crops are taken from it."""
CROP = 128
LEARNING_RATE = 1.5e-3
EMA = 0.999
KL_WEIGHT = 5e-4
"""Per latent number: enough to keep the latents near a unit normal, too little to blur what they decode to."""
EDGE_WEIGHT = 1.0
ABSTRACT_SHARE = 0.2
HELD_OUT = 64


def build() -> AutoencoderKL:
    """The architecture, with random weights."""
    return AutoencoderKL(
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=CROP,
    )


def main() -> None:
    """Render, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="time to train for")
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps")
    parser.add_argument("--pictures", type=int, default=12_000, help="how many to render")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights" / "vae")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG of originals above their reconstructions")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    pictures = torch.from_numpy(render(options.pictures)).to(device)
    held_out, pictures = pictures[-HELD_OUT:], pictures[:-HELD_OUT]
    model = train(pictures, options.batch, options.minutes * 60, options.steps or 10**9)
    save(model, pictures, options.out)
    seeds = range(options.pictures - HELD_OUT, options.pictures)
    measure(options.out, held_out, torch.tensor([is_abstract(generator(seed)) for seed in seeds]), options.sheet)


# Pictures.


def render(count: int) -> NDArray[np.uint8]:
    """Squares of SIDE px, drawings mixed with abstract pictures: (count, SIDE, SIDE, 3)."""
    start = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        pictures = np.stack(list(pool.map(square, range(count), chunksize=32)))
    print(f"rendered {count} pictures in {time.monotonic() - start:.0f} s", flush=True)
    return pictures


def square(seed: int) -> NDArray[np.uint8]:
    """The picture of a seed, enlarged or cropped to a square of SIDE px."""
    rng = generator(seed)
    if is_abstract(rng):
        return abstract(rng.randrange(2**32))
    image = draw(random_scene(rng, random_character(rng)))
    scale = SIDE / min(image.size)
    image = image.resize((math.ceil(image.width * scale), math.ceil(image.height * scale)), Image.Resampling.LANCZOS)
    x, y = rng.randint(0, image.width - SIDE), rng.randint(0, image.height - SIDE)
    return np.asarray(image.crop((x, y, x + SIDE, y + SIDE)))


def generator(seed: int) -> random.Random:
    """The random numbers a picture is made from."""
    return random.Random(f"vae {seed}")


def is_abstract(rng: random.Random) -> bool:
    """Whether a picture is to be no drawing: what the first of its random numbers decides."""
    return rng.random() < ABSTRACT_SHARE


def abstract(seed: int) -> NDArray[np.uint8]:
    """Smooth fields, textures, polygons and strokes: what drawings do not have."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((SIDE, SIDE, 3))
    for size in rng.choice([3, 6, 12, 40, 120], size=2, replace=False):
        field = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        picture += rng.uniform(0.3, 1) * np.asarray(field.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    picture = 255 * (picture - picture.min()) / max(np.ptp(picture), 1)
    image = Image.fromarray(picture.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 14)):
        color = tuple(rng.integers(0, 256, 3).tolist())
        points = [tuple(point) for point in rng.integers(0, SIDE, (rng.integers(2, 6), 2)).tolist()]
        if len(points) > 2 and rng.random() < 0.5:
            pen.polygon(points, fill=color)
        else:
            pen.line(points, fill=color, width=int(rng.integers(1, 9)))
    return np.asarray(image)


def crops(pictures: Tensor, batch: int) -> Tensor:
    """A random batch on the pictures' device: scaled by 0.4 to 1, cropped, flipped; (batch, 3, CROP, CROP) in -1..1."""
    index = torch.randint(len(pictures), (batch,), device=pictures.device)
    size = int(torch.randint(CROP, SIDE + 1, ()).item())  # One scale for the batch: the crop's side before scaling.
    x, y = (int(torch.randint(SIDE - size + 1, ()).item()) for _ in range(2))
    region = pictures[index, y : y + size, x : x + size].permute(0, 3, 1, 2).float() / 127.5 - 1
    region = F.interpolate(region, (CROP, CROP), mode="bilinear", antialias=True)
    return region.flip(3) if torch.rand(()).item() < 0.5 else region


# Training.


def train(pictures: Tensor, batch: int, seconds: float, steps: int) -> AutoencoderKL:
    """Train for a time, the rate falling to zero at its end; returns the averaged weights."""
    device = pictures.device
    model = build().to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.monotonic()
    for step, progress in enumerate(clock_ticks(start, seconds, steps)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 200) * (1 - progress) ** 0.8
        images = crops(pictures, batch).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample()).sample
        loss, parts = objective(images, decoded.float(), posterior)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 500 == 0:
            print(f"step {step}, {time.monotonic() - start:.0f} s: {parts}", flush=True)
    trained: AutoencoderKL = average.module
    return trained.eval()


def clock_ticks(start: float, seconds: float, steps: int) -> Iterator[float]:
    """Shares of the time that have passed, until it is over or the steps are done."""
    for _ in range(steps):
        share = (time.monotonic() - start) / seconds
        if share >= 1:
            return
        yield share


def objective(images: Tensor, decoded: Tensor, posterior: object) -> tuple[Tensor, str]:
    """L1 of the pixels and of their differences at three scales, and the divergence of the latents.

    The differences are what keeps outlines sharp where there is no network to judge pictures by.
    """
    pixels = F.l1_loss(decoded, images)
    edges = sum(
        F.l1_loss(difference(F.avg_pool2d(decoded, size), axis), difference(F.avg_pool2d(images, size), axis))
        for size in (1, 2, 4)
        for axis in (2, 3)
    )
    kl = posterior.kl().mean() / posterior.mean[0].numel()  # type: ignore[attr-defined]
    return pixels + EDGE_WEIGHT * edges / 6 + KL_WEIGHT * kl, f"L1 {pixels:.4f}, edges {edges:.4f}, KL {kl:.2f}"


def difference(images: Tensor, axis: int) -> Tensor:
    """Differences of neighbours along an axis."""
    return torch.diff(images, dim=axis)


# Results.


@torch.no_grad()
def save(model: AutoencoderKL, pictures: Tensor, folder: Path) -> None:
    """Write the folder in float16, with the factors that bring its latents to mean 0 and deviation 1."""
    latents = torch.cat([model.encode(crops(pictures, 64)).latent_dist.mean.float() for _ in range(16)])
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    per_channel = latents.std(dim=(0, 2, 3))
    print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}, of channels {per_channel.tolist()}")
    model.half().save_pretrained(folder)


@torch.no_grad()
def measure(folder: Path, held_out: Tensor, abstract: Tensor, sheet: Path | None) -> None:
    """Print the quality of the saved file on pictures it was not trained on, `abstract` ones (a mask) apart."""
    model = AutoencoderKL.from_pretrained(folder).to(held_out.device)
    images = held_out.permute(0, 3, 1, 2).float() / 127.5 - 1
    for side in (128, 256):
        small = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        decoded = model.decode(model.encode(small).latent_dist.mean).sample.clamp(-1, 1)
        psnr = 10 * torch.log10(4 / (decoded - small).square().mean(dim=(1, 2, 3)))
        for name, part in (("drawings", psnr.cpu()[~abstract]), ("abstract", psnr.cpu()[abstract])):
            print(f"{side} px, {name}: PSNR mean {part.mean():.1f}, worst {part.min():.1f} dB")
        if sheet and side == 128:
            rows = [torch.cat(list(part[i : i + 16]), dim=2) for i in (0, 16) for part in (small, decoded)]
            pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(sheet)


if __name__ == "__main__":
    main()
