"""Lights that are known."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.dedupe.descriptor import CHROMA, LUMA, describe
from curate.dedupe.light import FREE, Planes, excess, fit, light, lit
from demo.characters import BACKGROUNDS, CHARACTERS, random_scene
from demo.drawing import draw


@cache
def picture(number: int) -> Image.Image:
    scene = replace(random_scene(random.Random(number), CHARACTERS[number]), width=256, height=320)
    return draw(replace(scene, background=BACKGROUNDS[number % len(BACKGROUNDS)]))


def planes_of(*images: Image.Image) -> Planes:
    return Planes.of(np.stack([np.frombuffer(describe(image), np.uint8) for image in images]))


def relit(image: Image.Image, gain: float, offset: float) -> Image.Image:
    """As an image editor does it."""
    return Image.fromarray(np.clip(np.asarray(image) * gain + offset, 0, 255).astype(np.uint8))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 11), st.floats(1, 1.15), st.floats(0, 8))
def test_a_light_is_found_and_undone(number, gain, offset):
    dark = picture(number)
    a, b = planes_of(dark), planes_of(relit(dark, gain, offset))
    lights = light(a, b, np.ones((1, CHROMA, CHROMA), np.float32))
    # Where much is clipped, gain and offset stand in for each other: what counts is what they do to grey.
    for level in (64, 128):
        assert abs((lights[0, 0] - gain) * level + lights[0, 1] - offset) < 7
    as_it_is, in_that_light = (np.median(excess(lit(a, one), b)) for one in (np.array([[1, 0]], np.float32), lights))
    assert in_that_light < 0.25
    assert in_that_light <= as_it_is + 0.05


def test_a_picture_is_in_its_own_light():
    planes = planes_of(*(picture(number) for number in range(12)))
    gain, offset = light(planes, planes, np.ones((12, CHROMA, CHROMA), np.float32)).T
    assert np.abs(gain - 1).max() < 0.002
    assert np.abs(offset).max() < 0.2


@given(st.integers(0, 2**32 - 1), st.floats(0.8, 1.3), st.floats(-20, 20))
def test_a_fit_sees_through_clipping_and_a_tenth_of_outliers(seed, gain, offset):
    chance = np.random.default_rng(seed)
    x = chance.uniform(0, 255, (1, 500)).astype(np.float32)
    y = np.clip(gain * x + offset, 0, 255).astype(np.float32)
    y[:, :50] = chance.uniform(0, 255, 50)
    ((found_gain, found_offset),) = fit(x, y, np.ones_like(x), y < 255, FREE)
    assert abs((found_gain - gain) * 128 + found_offset - offset) < 1.5
    assert abs(found_gain - gain) < 0.04


@pytest.mark.parametrize("number", range(3))
def test_red_green_and_blue_are_those_of_the_picture(number):
    # Planes are smoothed, so the picture is compared in the mean of blocks.
    blocks = np.asarray(picture(number).resize((8, 8), Image.Resampling.BOX), dtype=float)
    for side in (LUMA, CHROMA):
        (rgb,) = planes_of(picture(number)).rgb(side)
        found = rgb.reshape(3, 8, side // 8, 8, side // 8).mean(axis=(2, 4))
        assert np.abs(np.moveaxis(found, 0, -1) - blocks).mean() < 3


@given(st.floats(0.5, 2), st.floats(-40, 40), st.integers(0, 11))
@settings(max_examples=20, deadline=None)
def test_a_lit_picture_is_clipped_per_colour(gain, offset, number):
    planes = planes_of(picture(number))
    found = lit(planes, np.array([[gain, offset]], np.float32))
    expected = np.clip(planes.rgb(CHROMA) * gain + offset, 0, 255)
    red_and_blue = found.planes.chroma[:, ::-1] * np.array([1.402, 1.772])[:, None, None]
    luma = (expected * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=1)
    assert np.abs(red_and_blue + luma[:, None] - expected[:, ::2]).max() < 1e-2
    lost = np.maximum(planes.rgb(CHROMA).max(axis=1) * gain + offset - 255, 0).max()
    assert found.lost[1].max() == pytest.approx(lost, abs=1e-3)
