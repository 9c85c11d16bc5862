"""Caption variants."""

import pytest

from caption.compose import KAOMOJI, compose, modifiers_of, ordered, spell

ALL = ("tags", "text", "tags_text")


def tag(name, category="general"):
    return {"name": name, "category": category, "origin": "source"}


TAGS = [
    tag("smile"),
    tag("wokada", "artist"),
    tag("highres", "meta"),
    tag("long_hair"),
    tag("hatsune_miku", "character"),
    tag("solo"),
    tag("vocaloid", "copyright"),
    tag("1girl"),
    tag("^_^"),
]


def test_tags_stand_in_the_order_of_illustrious():
    (caption,) = compose(TAGS, None, ALL)
    assert caption["text"] == "solo, 1girl, hatsune miku, vocaloid, smile, long hair, ^_^, wokada"


@pytest.mark.parametrize("name", ["1girl", "2boys", "6+girls", "multiple_girls", "1other", "solo", "no_humans"])
def test_person_counts_come_first(name):
    assert ordered([tag("a", "character"), tag(name)]) == [name, "a"]


@pytest.mark.parametrize("name", ["girls_und_panzer", "solo_focus", "1girl_left", "boys"])
def test_what_only_looks_like_a_person_count_stays(name):
    assert ordered([tag("a", "character"), tag(name)]) == ["a", name]


def test_underscores_become_blanks_but_for_faces():
    assert spell("ganyu_(genshin_impact)") == "ganyu (genshin impact)"
    assert all(spell(face) == face for face in KAOMOJI)


def test_variants_are_those_asked_for_and_possible():
    both = compose([tag("frog")], " A frog\n on a leaf. ", ALL)
    assert both == [
        {"variant": "tags", "text": "frog"},
        {"variant": "text", "text": "A frog on a leaf."},
        {"variant": "tags_text", "text": "frog. A frog on a leaf."},
    ]
    assert [caption["variant"] for caption in compose([tag("frog")], "A frog.", ("text", "tags"))] == ["text", "tags"]
    assert [caption["variant"] for caption in compose([], "A frog.", ALL)] == ["text"]
    assert compose([tag("highres", "meta")], "  ", ALL) == []


def test_rating_quality_and_year_stand_where_illustrious_has_them():
    modifiers = modifiers_of({"year_tag": "newest", "rating": "general", "quality_tag": "best quality"})
    tags, both = compose(TAGS, "A frog.", ("tags", "tags_text"), modifiers)
    assert tags["text"] == (
        "solo, 1girl, hatsune miku, vocaloid, general, smile, long hair, ^_^, wokada, best quality, newest"
    )
    assert both["text"] == f"{tags['text']}. A frog."


def test_modifiers_that_are_not_known_are_left_out_and_alone_they_are_no_caption():
    modifiers = modifiers_of({"rating": "explicit", "quality_tag": None, "year_tag": None})
    assert compose([tag("frog")], None, ALL, modifiers) == [{"variant": "tags", "text": "explicit, frog"}]
    assert compose([tag("highres", "meta")], "A frog.", ALL, modifiers) == [{"variant": "text", "text": "A frog."}]
    assert modifiers_of({"tags": TAGS, "caption": None}) == []
