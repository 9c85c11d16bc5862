"""The encoders against the libraries they are loaded with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import AutoModel, AutoTokenizer

from train.cache.encoders import ImageEncoder, TextEncoder
from train.cache.settings import CacheSettings

PREFIX = CacheSettings().prompt_prefix
CPU = torch.device("cpu")


def test_latents_equal_those_of_diffusers(tiny_model: Path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    latents = ImageEncoder(tiny_model, CPU).encode(list(pictures))
    vae = AutoencoderKL.from_pretrained(tiny_model, subfolder="vae")
    for picture, latent in zip(pictures, latents, strict=True):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            expected = vae.encode(pixels).latent_dist.mean[0]
        assert latent.shape == (16, 6, 8)
        torch.testing.assert_close(latent, expected, atol=1e-5, rtol=1e-5)


CAPTIONS = ["1girl, solo", "a", "A drawing of someone. " * 9, "smile, blue hair", "héllo 絵", "1girl, solo", ""]


def test_embeddings_equal_the_hidden_states_of_transformers(tiny_model: Path):
    encoder = TextEncoder(tiny_model, PREFIX, 256, CPU)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model / "tokenizer")
    model = AutoModel.from_pretrained(tiny_model / "text_encoder", attn_implementation="eager").eval()
    for caption, embedding in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = tokenizer(PREFIX + caption if caption else "", return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states[-2][0]
        assert embedding.dtype == torch.bfloat16
        assert embedding.shape == expected.shape
        # One unit in the last place of bfloat16: padding changes the order of float32 sums.
        torch.testing.assert_close(embedding.float(), expected, atol=2e-5, rtol=2**-7)


def test_prefix_rows_are_the_same_for_every_caption(tiny_model: Path):
    encoder = TextEncoder(tiny_model, PREFIX, 256, CPU)
    count = len(encoder.shared)
    assert count > 10
    first, *others = (rows[:count].float() for rows in encoder.encode([c for c in CAPTIONS if c]))
    for rows in others:
        torch.testing.assert_close(rows, first, atol=2e-5, rtol=2**-7)


def test_empty_caption_has_no_prefix(tiny_model: Path):
    encoder = TextEncoder(tiny_model, PREFIX, 256, CPU)
    assert encoder.ids("") == [2], "the beginning-of-sequence token alone"
    assert encoder.encode([""])[0].shape[0] == 1


@pytest.mark.parametrize("limit", [8, 30])
def test_captions_are_cut_at_the_limit_prefix_included(tiny_model: Path, limit: int):
    encoder = TextEncoder(tiny_model, PREFIX, limit, CPU)
    whole = TextEncoder(tiny_model, PREFIX, 256, CPU)
    caption = "blue hair, " * 20
    assert encoder.ids(caption) == whole.ids(caption)[:limit]


def test_descriptions_tell_encoders_apart(tiny_model: Path):
    one = TextEncoder(tiny_model, PREFIX, 256, CPU).description
    assert one != TextEncoder(tiny_model, "", 256, CPU).description
    assert one == TextEncoder(tiny_model, PREFIX, 256, CPU).description
    assert ImageEncoder(tiny_model, CPU).description["scaling_factor"] != 1
