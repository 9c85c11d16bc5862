"""Windows that are known, and the pieces of the search against SciPy."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.dedupe.align import WHOLE, align, cubic, grown, inside, linear, pooled, resampled, slopes, smoothed
from curate.dedupe.descriptor import LUMA, describe, planes
from demo.characters import CHARACTERS, random_scene
from demo.drawing import draw

WIDTH, HEIGHT = 400, 480
CUT = st.integers(0, 24)
"""Pixels cut off at one side: up to 6 %."""

PLANES = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(0, 255, (3, 16, 16)))
WINDOWS = st.tuples(*(st.floats(-0.1, 0.1), st.floats(0.8, 1.2)) * 2).map(lambda w: np.array([w] * 3, np.float32))


@cache
def picture(number: int) -> Image.Image:
    return draw(replace(random_scene(random.Random(number), CHARACTERS[number]), width=WIDTH, height=HEIGHT))


def luma(*images: Image.Image) -> np.ndarray:
    return planes(np.stack([np.frombuffer(describe(image), np.uint8) for image in images]))[0]


def cropped(image: Image.Image, cuts: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
    """A crop, and the window of the picture that it shows."""
    left, right, top, bottom = cuts
    window = [(left - right) / 2 / WIDTH, 1 - (left + right) / WIDTH]
    window += [(top - bottom) / 2 / HEIGHT, 1 - (top + bottom) / HEIGHT]
    return image.crop((left, top, WIDTH - right, HEIGHT - bottom)), np.array(window)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 11), st.tuples(CUT, CUT, CUT, CUT))
def test_a_crop_is_found_from_both_sides(number, cuts):
    image = picture(number)
    crop, window = cropped(image, cuts)
    images = luma(image, crop)
    found, back = align(images, images[::-1])
    inverse = np.stack([-window[::2] / window[1::2], 1 / window[1::2]], axis=1).ravel()
    assert np.abs(found - window).max() * LUMA < 0.75
    assert np.abs(back - inverse).max() * LUMA < 0.75


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.tuples(CUT, CUT, CUT, CUT), st.floats(0.5, 0.55))
def test_a_crop_is_found_in_another_light(cuts, gain):
    crops, windows = zip(*(cropped(picture(number), cuts) for number in range(12)), strict=True)
    darker = luma(*(crop.point(lambda value: value * gain) for crop in crops))
    found = align(luma(*(picture(number) for number in range(12))), darker)
    assert np.abs(found - windows).max() * LUMA < 0.75


def test_a_picture_shows_the_whole_of_itself():
    images = luma(*(picture(number) for number in range(12)))
    assert np.abs(align(images, images) - WHOLE).max() * LUMA < 0.01


def test_where_nothing_is_drawn_nothing_moves():
    plain = np.full((2, LUMA, LUMA), [[[0]], [[255]]], np.float32)
    assert np.abs(align(plain, plain[::-1]) - WHOLE).max() * LUMA < 0.01
    assert align(plain[:0], plain[:0]).shape == (0, 4)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9))
def test_a_window_does_not_depend_on_the_other_pairs(pairs):
    images = luma(*(picture(number) for number in range(4)))
    a, b = np.array(pairs).T
    together = align(images[a], images[b])
    alone = [align(images[[i]], images[[j]])[0] for i, j in pairs]
    assert together.tobytes() == np.stack(alone).tobytes()


@given(PLANES, WINDOWS)
def test_resampling_by_straight_lines_is_that_of_scipy(plane, windows):
    shift_x, scale_x, shift_y, scale_y = windows[0]
    place = (np.arange(16) + 0.5) / 16 - 0.5
    columns, rows = (
        (scale * place + shift + 0.5) * 16 - 0.5 for shift, scale in ((shift_x, scale_x), (shift_y, scale_y))
    )
    grid = np.meshgrid(rows, columns, indexing="ij")
    expected = [scipy.ndimage.map_coordinates(one, grid, order=1, mode="nearest") for one in plane]
    assert np.abs(resampled(plane.astype(np.float32), windows, linear) - expected).max() < 0.02


@given(st.tuples(*[st.floats(-1, 1)] * 6), WINDOWS)
def test_cubic_resampling_is_exact_for_parabolas(factors, windows):
    def surface(x, y):
        return np.tensordot(factors, [np.ones_like(x), x, y, x * x, x * y, y * y], 1)

    y, x = np.meshgrid(*[(np.arange(32) + 0.5) / 32 - 0.5] * 2, indexing="ij")
    shift_x, scale_x, shift_y, scale_y = windows[0]
    found = resampled(surface(x, y)[None].astype(np.float32), windows[:1], cubic)[0]
    at_x, at_y = scale_x * x + shift_x, scale_y * y + shift_y
    known = np.maximum(np.abs(at_x), np.abs(at_y)) < 0.5 - 2 / 32  # The kernel reaches two pixels far.
    assert np.abs(found - surface(at_x, at_y))[known].max() < 1e-4


@given(WINDOWS, st.sampled_from((0.0, 1.6)))
def test_inside_is_what_both_pictures_show(windows, margin):
    found = inside(windows[:1], 16, margin)[0]
    shift_x, scale_x, shift_y, scale_y = windows[0].astype(float)
    for row in range(16):
        for column in range(16):
            x, y = (column + 0.5) / 16 - 0.5, (row + 0.5) / 16 - 0.5
            places = (x, y, scale_x * x + shift_x, scale_y * y + shift_y)
            spare = 0.5 - margin / 16 - max(abs(place) for place in places)
            assert found[row, column] == (spare > 0) or abs(spare) < 1e-5


@given(PLANES)
def test_filters_are_those_of_scipy_and_numpy(plane):
    single = plane.astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    down, across = np.gradient(plane, axis=(1, 2))
    for found, expected in (
        (smoothed(single), [scipy.ndimage.convolve(one, kernel, mode="nearest") for one in plane]),
        (grown(single), [scipy.ndimage.maximum_filter(one, 3, mode="nearest") for one in plane]),
        (pooled(single, 4), plane.reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))),
        (slopes(single)[0][:, :, 1:-1], across[:, :, 1:-1]),
        (slopes(single)[1][:, 1:-1], down[:, 1:-1]),
    ):
        assert np.abs(found - np.asarray(expected)).max() < 1e-3
