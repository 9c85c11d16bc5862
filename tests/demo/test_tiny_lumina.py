"""tiny-lumina: the real formats, the same on every machine."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, Lumina2Pipeline
from PIL import Image
from transformers import AutoTokenizer

from demo.characters import CHARACTERS, Scene
from demo.drawing import draw
from demo.tiny_lumina import TRANSFORMER, WEIGHTS, write_tiny_lumina
from train.model.config import DiTConfig


def test_it_is_a_pipeline_that_draws(tmp_path: Path):
    pipeline = Lumina2Pipeline.from_pretrained(write_tiny_lumina(tmp_path / "model"))
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("1girl, blue hair", num_inference_steps=2, width=96, height=64).images[0]
    assert picture.size == (96, 64)
    assert DiTConfig.from_folder(tmp_path / "model/transformer") == TRANSFORMER


def test_same_files_every_time(tmp_path: Path):
    def digests(folder: Path) -> dict[str, str]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    one, two = write_tiny_lumina(tmp_path / "one"), write_tiny_lumina(tmp_path / "two")
    assert digests(one) == digests(two)


def test_tokenizer_knows_words_and_any_letter(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_lumina(tmp_path / "model") / "tokenizer")
    text = "smile, blue hair, héllo 絵 🎨"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert "▁blue" in tokenizer.convert_ids_to_tokens(ids)


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in (WEIGHTS / "vae").iterdir()) < 8 * 2**20
    assert sum(path.stat().st_size for path in (WEIGHTS / "transformer").iterdir()) < 8 * 2**20


def test_the_autoencoder_keeps_a_drawing_it_has_never_seen():
    scene = Scene(CHARACTERS[0], "standing", "smile", "sky", "portrait", False, 192, 192, (0, 0), 1.0, 0.0, 1)
    picture = draw(scene).resize((128, 128), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae")
    with torch.no_grad():
        latent = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latent).sample
    psnr = 10 * torch.log10(4 / (decoded - pixels).square().mean())
    assert psnr > 25, "decibels"
    scaled = (latent - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(scaled.mean()) < 0.5
    assert 0.5 < scaled.std() < 2
