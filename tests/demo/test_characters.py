import random
from dataclasses import replace

import pytest

from demo.characters import (
    CHARACTERS,
    CLOTHES,
    Character,
    Scene,
    other_costume,
    random_character,
    random_scene,
    sentence,
    tags,
)


def scene_of(character: Character, seed: int = 0) -> Scene:
    return random_scene(random.Random(seed), character)


@pytest.mark.parametrize("character", CHARACTERS, ids=lambda character: character.name)
def test_tags_and_sentence_name_the_character(character: Character) -> None:
    scene = scene_of(character)
    assert tags(scene)["character"] == [character.name]
    assert character.name in sentence(scene)


def test_tags_say_what_is_in_the_picture() -> None:
    scene = replace(scene_of(CHARACTERS[3]), pose="waving", expression="smile", background="night", framing="portrait")
    assert tags(scene)["general"] == [
        "1girl", "solo", "pink_hair", "bob_cut", "green_eyes", "blue_serafuku", "hair_bow",
        "waving", "smile", "night", "portrait",
    ]  # fmt: skip


def test_a_random_character_has_no_name() -> None:
    scene = scene_of(random_character(random.Random(0)))
    assert tags(scene)["character"] == []
    assert sentence(scene).startswith("A drawing of a ")


def test_an_absent_accessory_is_not_mentioned() -> None:
    scene = scene_of(replace(CHARACTERS[0], accessory="none"))
    assert "none" not in tags(scene)["general"]
    assert "none" not in sentence(scene)


def test_the_twelve_differ_in_name_and_in_hair_or_clothes() -> None:
    assert len({character.name for character in CHARACTERS}) == 12
    assert len({(c.hair, c.hair_style) for c in CHARACTERS}) == 12
    assert len({(c.clothes, c.clothes_color) for c in CHARACTERS}) == 12
    assert {character.clothes for character in CHARACTERS} == set(CLOTHES)


def test_a_scene_is_a_function_of_the_random_numbers() -> None:
    assert scene_of(CHARACTERS[0], 1) == scene_of(CHARACTERS[0], 1)
    assert scene_of(CHARACTERS[0], 1) != scene_of(CHARACTERS[0], 2)


@pytest.mark.parametrize("seed", range(50))
def test_scenes_keep_to_their_aspect_ratios(seed: int) -> None:
    scene = scene_of(CHARACTERS[0], seed)
    assert 0.66 <= scene.width / scene.height <= 1.51


def test_another_costume_changes_nothing_else() -> None:
    scene = scene_of(CHARACTERS[0])
    variant = other_costume(random.Random(0), scene)
    assert variant.character.clothes_color != scene.character.clothes_color
    same_color = replace(variant.character, clothes_color=scene.character.clothes_color)
    assert replace(variant, character=same_color) == scene
