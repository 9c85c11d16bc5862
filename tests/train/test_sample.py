"""The sampler against diffusers' pipeline: same weights, noise and embeddings, same latents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.errors import UserError
from train import flow
from train.cache.resolution import MAX_TOKENS
from train.data.random import normal, stream_key
from train.model.dit import Lumina2DiT
from train.model.weights import load_transformer
from train.sample import Picture, draw_latents, grid_of
from train.settings import DrawSettings

STEPS = 6
SETTINGS = DrawSettings(steps=STEPS, guidance=4.0, guidance_until=1.0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Lumina2DiT:
    return load_transformer(tiny_model / "transformer").float().eval()


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Any:
    pipeline = Lumina2Pipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def captions(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(length, 128, generator=generator) for length in lengths]


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings and mask as diffusers has them."""
    ones = [torch.ones(len(text), dtype=torch.long) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(texts, batch_first=True), pad(ones, batch_first=True)


def norm_of_the_whole(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    """In place of diffusers' norm along the width alone: the official one (`forward_with_cfg` in models/model.py)."""
    assert (dim, keepdim) == (-1, True)
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize("guided_steps", [0, 2, STEPS])
def test_latents_are_those_of_diffusers(
    pipeline: Any, model: Lumina2DiT, guided_steps: int, monkeypatch: pytest.MonkeyPatch
):
    empty, *texts = captions(3, 9, 14)
    pictures = [Picture(text, (4, 6), seed) for seed, text in enumerate(texts, 5)]
    times = flow.schedule(STEPS, SETTINGS.shift)
    settings = SETTINGS.model_copy(update={"guidance_until": times[guided_steps]})
    ours = torch.stack(list(draw_latents(model, pictures, empty, settings)))

    noise = torch.stack([torch.from_numpy(normal(stream_key(seed), 16 * 8 * 12)).view(16, 8, 12) for seed in (5, 6)])
    embeddings, mask = padded([*texts, empty, empty])
    monkeypatch.setattr(torch, "norm", norm_of_the_whole)
    theirs = pipeline(
        prompt_embeds=embeddings[:2],
        prompt_attention_mask=mask[:2],
        negative_prompt_embeds=embeddings[2:],
        negative_prompt_attention_mask=mask[2:],
        latents=noise,
        height=64,
        width=96,
        num_inference_steps=STEPS,
        guidance_scale=SETTINGS.guidance,
        cfg_trunc_ratio=guided_steps / STEPS,  # A share of the steps there, a time here.
        cfg_normalization=True,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("guidance_until", [0.0, 0.5])
def test_a_picture_does_not_depend_on_those_beside_it(model: Lumina2DiT, guidance_until: float):
    settings = SETTINGS.model_copy(update={"steps": 3, "guidance_until": guidance_until})
    empty, *texts = captions(3, 9, 14, 5)
    grids = [(4, 6), (2, 2), (5, 3)]
    pictures = [Picture(text, grid, 7) for text in texts for grid in grids]
    seen: list[int] = []
    together = list(draw_latents(model, pictures, empty, settings, 10_000, stepped=seen.append))
    assert seen == [9, 9, 9]
    assert [latent.shape for latent in together] == [(16, 2 * rows, 2 * columns) for _, (rows, columns), _ in pictures]
    for budget, most in ((1, 1), (150, 3)):
        seen.clear()
        apart = list(draw_latents(model, pictures, empty, settings, budget, stepped=seen.append))
        assert max(seen) == most
        assert sum(seen) == 9 * 3
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    (other,) = draw_latents(model, [pictures[0]._replace(seed=8)], empty, settings)
    assert not torch.allclose(other, together[0], atol=0.1)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from([8, 16, 24]))
def test_sizes_are_drawn_or_the_nearest_named(width: int, height: int, multiple: int):
    right = range(multiple, MAX_TOKENS * multiple + 1, multiple)
    try:
        assert grid_of(f"{width}x{height}", multiple) == (height // multiple, width // multiple)
        assert width in right
        assert height in right
    except UserError as error:
        assert width not in right or height not in right
        for size in str(error).partition("take ")[2].split(" or "):
            rows, columns = grid_of(size, multiple)
            for side, steps in ((width, columns), (height, rows)):
                nearest = min(abs(side - one) for one in right)
                assert abs(side - steps * multiple) < multiple or abs(side - steps * multiple) == nearest


def test_sizes_in_words(model: Lumina2DiT):
    with pytest.raises(UserError, match=r"size 1000x1030: .* take 992x1024 or 1008x1040$"):
        grid_of("1000x1030", 16)
    with pytest.raises(UserError, match=r"at most 8192; take 8192x16$"):
        grid_of("9000x3", 16)
    for size in ("1024", "axb", "-16x16", "16x16x16", ""):
        with pytest.raises(UserError, match="as 832x1216"):
            grid_of(size, 16)
