"""What a model is asked, word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption.prompts import PLACEHOLDERS, STYLES, Known, check_template, fill, seed


def known(**about) -> Known:
    nothing = Known(characters=[], copyright=[], artist=[], general=[], rating=None, text=None)
    return nothing | about  # type: ignore[return-value]


MIKU = known(
    characters=["hatsune_miku", "kagamine_rin"],
    copyright=["vocaloid"],
    artist=["wokada"],
    general=["long_hair", "^_^", "2girls", "{smile}"],
    rating="general",
    text="39\nTHANKS",
)


def test_the_short_prompt_is_this_one():
    assert fill(STYLES["short"], MIKU) == (
        "Describe this illustration in one sentence of at most 30 words: who or what is in it, and what is going on.\n"
        "These facts about it are right, though not complete; do not mention that you were given any.\n"
        "Characters: hatsune miku, kagamine rin\n"
        "Series: vocaloid\n"
        "Seen in it: 2girls, long hair, ^_^, {smile}\n"
        "It can be read in it: 39 THANKS\n"
        "Call the characters by their names. Begin with what is seen, not with words like \"The image shows\". "
        "Write plain text\nin English, no list."
    )  # fmt: skip


def test_lines_about_nothing_are_left_out():
    template = "Describe.\nWho: {characters}\nBy {artist}, rated {rating}.\nEnd {{so}}."
    assert fill(template, known(rating="explicit")) == "Describe.\nBy , rated explicit.\nEnd {so}."
    assert fill(template, known()) == "Describe.\nEnd {so}."


def test_a_page_of_text_is_not_mentioned():
    assert fill("Read: {text}", known(text="word " * 100)) == ""
    assert fill("Read: {text}", known(text="word")) == "Read: word"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Who: {character}", r"unknown placeholder \{character\}; there are: \{characters\}, .*\{text\}"),
        ("{}", "unknown placeholder {}"),
        ("{general!r}", r"unknown placeholder \{general!r\}"),
        ("{general:10}", r"unknown placeholder \{general:10\}"),
        ("{general.__class__}", "unknown placeholder"),
        ("{general", "is no template"),
        ("}", "is no template"),
        (" \n", "is empty"),
    ],
)
def test_what_is_no_template(template, message):
    with pytest.raises(ValueError, match=message):
        check_template(template)


@pytest.mark.parametrize("template", [*STYLES.values(), "<MORE_DETAILED_CAPTION>", *map("{{{}}}".format, PLACEHOLDERS)])
def test_what_is_one(template):
    assert check_template(template) == template


def test_seeds_are_these():
    assert seed("abc", "short", 0) == 2012182506
    assert len({seed(image, style, attempt) for image in "ab" for style in ("x", "y") for attempt in range(3)}) == 12


@given(st.text(), st.text(), st.integers(0, 9))
def test_seeds_fit_into_31_bits(image_id, style, attempt):
    assert 0 <= seed(image_id, style, attempt) < 2**31
