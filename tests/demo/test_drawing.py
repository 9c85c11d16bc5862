import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.characters import (
    ACCESSORIES,
    BACKGROUNDS,
    CHARACTERS,
    CLOTHES,
    EXPRESSIONS,
    FRAMINGS,
    HAIR_STYLES,
    POSES,
    Scene,
    other_costume,
    random_scene,
)
from demo.drawing import draw, draw_transparent

PLAIN = replace(
    random_scene(random.Random(0), CHARACTERS[0]),
    pose="standing",
    expression="smile",
    background="simple_background",
    framing="full_body",
    flip=False,
    width=96,
    height=120,
    shift=(0.0, 0.0),
    scale=1.0,
    tilt=0.0,
)


def pixels(scene: Scene) -> NDArray[np.int64]:
    return np.asarray(draw(scene)).astype(np.int64)


def with_character(**changes: str) -> Scene:
    return replace(PLAIN, character=replace(PLAIN.character, **changes))  # type: ignore[arg-type]


def test_a_picture_is_a_function_of_its_scene() -> None:
    assert draw(PLAIN).tobytes() == draw(PLAIN).tobytes()


@pytest.mark.parametrize("size", [(96, 144), (144, 96)])
def test_a_picture_has_its_size(size: tuple[int, int]) -> None:
    image = draw(replace(PLAIN, width=size[0], height=size[1]))
    assert (image.mode, image.size) == ("RGB", size)


@pytest.mark.parametrize(
    "scenes",
    [
        [replace(PLAIN, background=name) for name in BACKGROUNDS],
        [replace(PLAIN, pose=name) for name in POSES],
        [replace(PLAIN, expression=name) for name in EXPRESSIONS],
        [replace(PLAIN, framing=name) for name in FRAMINGS],
        [with_character(hair_style=name) for name in HAIR_STYLES],
        [with_character(clothes=name) for name in CLOTHES],
        [with_character(accessory=name) for name in ACCESSORIES],
    ],
    ids=["background", "pose", "expression", "framing", "hair_style", "clothes", "accessory"],
)
def test_every_choice_shows(scenes: list[Scene]) -> None:
    """A tag that could be drawn as another would be a lie in the captions."""
    pictures = [pixels(scene) for scene in scenes]
    assert all(np.abs(one - other).max() > 64 for one, other in combinations(pictures, 2))


def test_a_flipped_figure_is_its_mirror_image() -> None:
    difference = np.abs(pixels(replace(PLAIN, flip=True)) - pixels(PLAIN)[:, ::-1])
    assert difference.mean() < 3  # Lines of an even width lie half a pixel beside the middle.


def test_transparent_pictures_are_empty_outside_the_figure() -> None:
    alpha = np.asarray(draw_transparent(PLAIN))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha.max() == 255


@pytest.mark.parametrize("framing", FRAMINGS)
def test_another_costume_shows_in_every_framing(framing: str) -> None:
    scene = replace(PLAIN, framing=framing)
    assert np.abs(pixels(other_costume(random.Random(0), scene)) - pixels(scene)).max() > 64


def test_the_twelve_can_be_told_apart_when_small_and_blurred() -> None:
    """At 12 px wide only the colours of hair and clothes are left."""
    scenes = [replace(PLAIN, character=character) for character in CHARACTERS]
    small = [np.asarray(draw(scene).resize((12, 15))).astype(np.int64) for scene in scenes]
    assert min(np.abs(one - other).mean() for one, other in combinations(small, 2)) > 5
