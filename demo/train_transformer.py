"""Trains the transformer of `tiny-lumina`, which is shipped in `demo/weights/transformer/`, on one GPU.

    python -m demo.train_transformer --minutes 6

It learns to draw random characters from their tags and never sees a name or any of the twelve of the demo: those
are what `make demo` then teaches it, as a user teaches characters to Lumina-Image-2.0. A loop of its own because
it draws its data as it goes and keeps it on the GPU; model, packing and objective are the trainer's.
"""

import argparse
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from demo.characters import random_character, random_scene, sentence, tags
from demo.drawing import draw
from demo.tiny_lumina import TRANSFORMER, WEIGHTS, text_encoder, tokenizer
from train import flow
from train.cache.resolution import fit
from train.cache.settings import CacheSettings
from train.ema import Ema
from train.model.dit import Lumina2DiT
from train.model.packing import PackedBatch, layout_of, patchify
from train.model.weights import save_transformer
from train.sample import Picture, decode_latent, draw_latents
from train.settings import DrawSettings
from train.sheet import contact_sheet

AREA = 128
LEARNING_RATE = 2e-3
CAPTION_DROPOUT = 0.1
CAPTIONS = 3
"""Wordings of each picture."""


@dataclass(frozen=True)
class Rows:
    """Sequences of rows, one after the other: sequence i is rows offsets[i] to offsets[i] + lengths[i]."""

    rows: Tensor
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: list[Tensor]) -> "Rows":
        """Lay sequences (rows, width) one after the other."""
        lengths = np.asarray([len(sequence) for sequence in sequences])
        return cls(torch.cat(sequences), lengths.cumsum() - lengths, lengths)

    def take(self, index: NDArray[np.int64]) -> Tensor:
        """The rows of some sequences, one after the other."""
        lengths = self.lengths[index]
        starts = np.repeat(self.offsets[index] - (lengths.cumsum() - lengths), lengths)
        places = torch.from_numpy(starts + np.arange(lengths.sum()))
        return self.rows[places.to(self.rows.device, non_blocking=True)]


def main() -> None:
    """Render, encode, train, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="time to train for")
    parser.add_argument("--pictures", type=int, default=20_000, help="how many to render")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path, default=WEIGHTS / "transformer")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG of what it draws in the end")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae").to(device)
    pictures, words = render(options.pictures)
    patches, grids = encode_pictures(vae, pictures, device)
    captions = encode_texts([*words, ""], device)
    model = train(patches, grids, captions, options.batch, options.minutes * 60)
    state = {name: tensor.half().cpu() for name, tensor in model.state_dict().items()}
    save_transformer(state, TRANSFORMER, options.out)
    if options.sheet:
        sheet(model, vae, captions, words).save(options.sheet)


def render(count: int) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Pictures at their own resolution, and CAPTIONS wordings of each."""
    start = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rendered = list(pool.map(example, range(count), chunksize=32))
    print(f"rendered {count} pictures in {time.monotonic() - start:.0f} s", flush=True)
    return [picture for picture, _ in rendered], [text for _, texts in rendered for text in texts]


def example(seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The picture of a seed, and its captions: tags, some of them left out, alone and with the sentence."""
    rng = random.Random(f"transformer {seed}")
    scene = random_scene(rng, random_character(rng))
    image = draw(scene)
    size = fit(*image.size, AREA, 16)
    assert size is not None
    image = image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=size.crop)
    general = [tag.replace("_", " ") for tag in tags(scene)["general"]]
    texts = [", ".join(general)]
    for _ in range(CAPTIONS - 1):
        kept = [tag for tag in general if rng.random() < 0.8] or general
        texts.append(", ".join(kept) + rng.choice(("", ". " + sentence(scene))))
    return np.asarray(image), texts


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, pictures: list[NDArray[np.uint8]], device: torch.device
) -> tuple[Rows, list[tuple[int, int]]]:
    """Patches of the scaled latents, and the pictures' grids in tokens."""
    sequences: list[Tensor] = []
    for picture in pictures:
        pixels = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = vae.encode(pixels).latent_dist.mean[0]
        sequences.append(patchify((latent - vae.config.shift_factor) * vae.config.scaling_factor, 2))
    return Rows.of(sequences), [(p.shape[0] // 16, p.shape[1] // 16) for p in pictures]


@torch.no_grad()
def encode_texts(texts: list[str], device: torch.device) -> Rows:
    """Caption embeddings with the prompt prefix; the empty text stays empty."""
    words, encoder, prefix = tokenizer(), text_encoder().to(device), CacheSettings().prompt_prefix
    sequences: list[Tensor] = []
    for first in range(0, len(texts), 1000):
        inputs = words([prefix + text if text else "" for text in texts[first : first + 1000]], padding=True)
        ids, mask = (torch.tensor(inputs[key], device=device) for key in ("input_ids", "attention_mask"))
        hidden = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        sequences += [rows[: int(length)] for rows, length in zip(hidden, mask.sum(dim=1), strict=True)]
    return Rows.of(sequences)


def train(patches: Rows, grids: list[tuple[int, int]], captions: Rows, batch: int, seconds: float) -> Lumina2DiT:
    """Train for a time, the rate falling to zero at its end; the model that returns holds the averaged weights."""
    device = patches.rows.device
    model = Lumina2DiT(TRANSFORMER).to(device)
    model.init_weights()
    ema = Ema(dict(model.named_parameters()), 0.999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0, fused=True)
    rng, start, step = np.random.default_rng(0), time.monotonic(), 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 500) * (1 - share) ** 0.8
        index = rng.integers(0, len(grids), batch)
        caption = index * CAPTIONS + rng.integers(0, CAPTIONS, batch)
        caption[rng.random(batch) < CAPTION_DROPOUT] = len(captions.lengths) - 1
        times = flow.timesteps(torch.randn(batch), flow.shift((AREA / 16) ** 2)).to(device)
        clean = PackedBatch(
            captions.take(caption),
            patches.take(index),
            times,
            tuple(captions.lengths[caption].tolist()),
            tuple(grids[i] for i in index),
        )
        layout, noise = layout_of(clean), torch.randn_like(clean.patches)
        noisy = flow.noisy(clean.patches, noise, times[layout.image_sample][:, None])
        with torch.autocast(device.type, torch.bfloat16):
            prediction = model(clean.with_patches(noisy), layout)
        target = flow.velocity(clean.patches, noise)
        loss = flow.sample_losses(prediction, target, layout.image_sample, batch).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        if step % 250 == 0:
            print(f"step {step}, {time.monotonic() - start:.0f} s: loss {loss.item():.4f}", flush=True)
        step += 1
    model.load_state_dict(ema.average)
    return model.eval()


def sheet(model: Lumina2DiT, vae: AutoencoderKL, captions: Rows, words: list[str]) -> Image.Image:
    """What the model draws for the first captions."""
    chosen = range(0, 24 * CAPTIONS, CAPTIONS)
    pictures = [Picture(captions.take(np.asarray([index])), (8, 8), number) for number, index in enumerate(chosen)]
    empty = captions.take(np.asarray([len(words)]))
    settings = DrawSettings(steps=30, guidance=3.0, guidance_until=1.0, shift=3.0)
    latents = draw_latents(model, pictures, empty, settings)
    return contact_sheet([decode_latent(vae, latent) for latent in latents], [words[index] for index in chosen])


if __name__ == "__main__":
    main()
