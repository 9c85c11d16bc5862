"""The ways to a model's input, against those of open_clip and timm themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import image_transform
from PIL import Image
from timm.data import create_transform

from shared.vision.geometry import Geometry
from shared.vision.nvjpeg import square

SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def as_bytes(tensor) -> np.ndarray:
    """What a transform to 0..1 made, as pixels."""
    return (tensor.permute(1, 2, 0) * 255).round().byte().numpy()


@settings(deadline=None, max_examples=60)
@given(SIZES, st.sampled_from([("crop", "shortest"), ("squash", "squash")]), st.sampled_from(["bicubic", "bilinear"]))
def test_as_open_clip_does(size, modes, interpolation):
    ours, theirs = modes
    expected = image_transform(32, False, (0, 0, 0), (1, 1, 1), theirs, interpolation)(noise(size))
    assert np.array_equal(Geometry(32, ours, interpolation).apply(noise(size)), as_bytes(expected))


@settings(deadline=None, max_examples=40)
@given(SIZES, st.sampled_from([1.0, 0.9, 0.875]), st.sampled_from(["center", "squash"]))
def test_as_timm_does(size, crop, mode):
    geometry = Geometry(32, "squash" if mode == "squash" else "crop", "bicubic", crop=crop)
    transform = create_transform(
        (3, 32, 32), interpolation="bicubic", crop_pct=crop, crop_mode=mode, mean=(0, 0, 0), std=(1, 1, 1)
    )
    assert np.array_equal(geometry.apply(noise(size)), as_bytes(transform(noise(size))))


def test_padding_is_white_and_even():
    found = Geometry(40, "pad", "bicubic").apply(Image.new("RGB", (20, 40), "black"))
    assert found.shape == (40, 40, 3)
    assert (found[:, 10:30] == 0).all()
    assert (found[:, :10] == 255).all()
    assert (found[:, 30:] == 255).all()


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@given(size=SIZES)
def test_what_is_enough_is_never_less_than_the_input(mode, size):
    longer, shorter = Geometry(32, mode, "bicubic").enough
    assert longer >= 32
    assert shorter >= 32 or mode == "pad"


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@settings(deadline=None, max_examples=40)
@given(size=st.tuples(st.integers(2, 150), st.integers(2, 150)), interpolation=st.sampled_from(["bicubic", "bilinear"]))
def test_a_gpu_makes_the_same_squares(mode, size, interpolation):
    geometry = Geometry(32, mode, interpolation, crop=0.9)
    # Where colours are cut off, the order of the passes shows; PyTorch's CPU fails at lines one pixel wide.
    picture = Image.fromarray(64 + np.asarray(noise(size)) // 2)
    found = square(torch.from_numpy(np.array(picture)).permute(2, 0, 1), geometry)
    assert found.shape == (32, 32, 3)
    # Where halves are rounded otherwise in one direction, the other may add one more.
    np.testing.assert_allclose(found.int(), geometry.apply(picture).astype(int), atol=2)
