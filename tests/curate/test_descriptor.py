"""Descriptors, against the formulas of JFIF and plain means."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curate.dedupe.descriptor import CHROMA, LUMA, SIZE, describe, planes
from demo.characters import CHARACTERS, random_scene
from demo.drawing import draw

JFIF = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""Rows Y, Cb, Cr over red, green and blue; Cb and Cr around 0."""


def described(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    luma, chroma = planes(np.frombuffer(describe(image), np.uint8)[None])
    return luma[0], chroma[0]


def by_formula(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The planes of a picture whose sides are multiples of LUMA, by means over whole blocks."""
    rgb = np.asarray(image).astype(float)
    rows, columns = rgb.shape[0] // LUMA, rgb.shape[1] // LUMA
    small = rgb.reshape(LUMA, rows, LUMA, columns, 3).mean(axis=(1, 3))
    y, *chroma = np.moveaxis(small @ JFIF.T, -1, 0)
    return y, np.stack(chroma).reshape(2, CHROMA, 2, CHROMA, 2).mean(axis=(2, 4))


@given(st.integers(0, 2**32 - 1))
def test_planes_of_a_thumbnail_are_those_of_jfif(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (LUMA, LUMA, 3), dtype=np.uint8)
    luma, chroma = described(Image.fromarray(pixels))
    y, cb_cr = by_formula(Image.fromarray(pixels))
    assert luma.shape == y.shape
    assert chroma.shape == cb_cr.shape
    assert np.abs(luma - y).max() <= 1.1  # Pillow's tables are whole numbers.
    assert np.abs(chroma - cb_cr).max() <= 1.6  # Rounded once more after the mean.


def test_grey_has_no_colour():
    luma, chroma = described(Image.new("RGB", (100, 100), (90, 90, 90)))
    assert (luma == 90).all()
    assert (chroma == 0).all()


@pytest.mark.parametrize("size", [(256, 192), (320, 448)])
def test_pixels_are_means_over_the_area_they_cover(size):
    image = draw(replace(random_scene(random.Random(1), CHARACTERS[0]), width=size[0], height=size[1]))
    for found, expected in zip(described(image), by_formula(image), strict=True):
        error = found - expected
        blocks = error.reshape(*error.shape[:-2], 8, error.shape[-2] // 8, 8, error.shape[-1] // 8)
        assert np.abs(blocks.mean(axis=(-1, -3))).max() < 2
        assert np.abs(error).mean() < 4  # A cubic filter is sharper than a mean at every edge.


@pytest.mark.parametrize("character", CHARACTERS[:4])
def test_a_reduced_picture_has_the_same_descriptor(character):
    image = draw(replace(random_scene(random.Random(2), character), width=640, height=512))
    for reduced in (image.reduce(2), image.resize((333, 266), Image.Resampling.LANCZOS)):
        for found, expected in zip(described(reduced), described(image), strict=True):
            assert np.abs(found - expected).mean() < 0.8
            assert np.abs(found - expected).max() < 16


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2000, 1), (63, 65)])
def test_a_picture_of_any_size_and_one_colour_is_that_colour(size):
    luma, chroma = described(Image.new("RGB", size, (200, 40, 90)))
    y, cb, cr = JFIF @ (200, 40, 90)
    assert len(describe(Image.new("RGB", size))) == SIZE == 6144
    assert np.abs(luma - y).max() <= 1
    assert np.abs(chroma - np.array([cb, cr])[:, None, None]).max() <= 1
