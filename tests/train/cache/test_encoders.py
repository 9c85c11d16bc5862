"""The encoders against the libraries they are loaded with."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from shared.errors import UserError
from train.cache import fused
from train.cache.autoencoder import ImageEncoder
from train.cache.settings import CacheSettings
from train.cache.text_encoder import TextEncoder, packs

PREFIX = CacheSettings().prompt_prefix
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> TextEncoder:
    return TextEncoder(tiny_model, PREFIX, 256, CPU)


@pytest.mark.parametrize("scores", [fused.SCORES, 0])
def test_latents_equal_those_of_diffusers(tiny_model: Path, scores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "SCORES", scores)
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


words = st.text("abcd ,é絵", max_size=60)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captions=st.lists(words, min_size=1, max_size=12), pack=st.integers(40, 400))
def test_embeddings_do_not_depend_on_what_they_are_packed_with(encoder: TextEncoder, captions: list[str], pack: int):
    # One unit in the last place of bfloat16: the order of float32 sums is another.
    with mock.patch.object(encoder, "pack", pack):
        together = encoder.encode(captions)
    for caption, found in zip(captions, together, strict=True):
        alone = encoder.encode([caption])[0]
        assert found.shape == alone.shape
        torch.testing.assert_close(found.float(), alone.float(), atol=2e-5, rtol=2**-7)


@given(st.lists(st.integers(1, 256), max_size=300), st.integers(256, 2000))
def test_packs_are_even_and_in_order(lengths: list[int], most: int):
    captions = [[index] * length for index, length in enumerate(lengths)]
    found = packs(captions, most)
    assert [caption for pack in found for caption in pack] == captions
    sizes = [sum(map(len, pack)) for pack in found]
    assert len(sizes) <= -(-sum(lengths) // most)
    assert all(0 < size < most + 256 for size in sizes)


def test_longer_captions_are_cut_and_counted(tiny_model: Path):
    encoder = TextEncoder(tiny_model, PREFIX, 30, CPU)
    ids = encoder.all_ids(["", "a", "blue hair, " * 20])
    assert [encoder.is_cut(text, found) for text, found in zip(["", "a", "blue hair, " * 20], ids, strict=True)] == [
        False,
        False,
        True,
    ]
    exact = TextEncoder(tiny_model, PREFIX, len(encoder.ids("a")), CPU)
    assert not exact.is_cut("a", exact.ids("a"))


def test_other_language_models(tiny_model: Path, tmp_path: Path):
    """Any body of layers and a norm will do: here Llama's."""
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=4096, **sizes)).save_pretrained(tmp_path / "text_encoder")
    encoder = TextEncoder(tmp_path, PREFIX, 256, CPU)
    whole = AutoModel.from_pretrained(tmp_path / "text_encoder", attn_implementation="eager").eval()
    for caption, embedding in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        with torch.no_grad():
            ids = torch.tensor([encoder.ids(caption)])
            expected = whole(ids, output_hidden_states=True).hidden_states[-2][0]
        torch.testing.assert_close(embedding.float(), expected, atol=2e-5, rtol=2**-7)


def test_a_model_that_cannot_be_cut_short_is_an_error(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer")
    GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(UserError, match="GPT2Model does not end in"):
        TextEncoder(tmp_path, PREFIX, 256, CPU)


def test_tiny_autoencoders(tmp_path: Path):
    torch.manual_seed(0)
    vae = AutoencoderTiny(latent_channels=8).eval()
    vae.save_pretrained(tmp_path / "vae")
    encoder = ImageEncoder(tmp_path, CPU)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1).latents
    torch.testing.assert_close(encoder.encode([picture]), expected, atol=1e-5, rtol=1e-5)
    assert (encoder.factor, encoder.description["channels"]) == (8, 8)


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path):
    # As TAEF2's do not: diffusers 0.42 would leave out what its blocks do not have, and warn.
    AutoencoderTiny(latent_channels=8).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"encoder.layers.11.pool.0.weight": torch.zeros(4)}, file)
    with pytest.raises(UserError, match="1 weights do not fit diffusers' AutoencoderTiny"):
        ImageEncoder(tmp_path, CPU)
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match="'VQModel'; this version knows AutoencoderKL and AutoencoderTiny"):
        ImageEncoder(tmp_path, CPU)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_a_gpu_gives_the_same_but_for_bfloat16(tiny_model: Path):
    gpu = torch.device("cuda")
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8))
    found, expected = (ImageEncoder(tiny_model, device).encode(pictures) for device in (gpu, CPU))
    assert ((found - expected).norm() / expected.norm()).item() < 0.03
    for one, other in zip(
        *(TextEncoder(tiny_model, PREFIX, 256, on).encode(CAPTIONS) for on in (gpu, CPU)), strict=True
    ):
        assert ((one.float() - other.float()).norm() / other.float().norm()).item() < 0.03
