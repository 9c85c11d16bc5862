"""The spelling of tags."""
# ruff: noqa: RUF001

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.safety import MINOR_TAGS
from shared.spelling import tag_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("  Long  Hair\n", "long_hair"),
        ("long _hair_", "long_hair"),
        (r"ganyu \(genshin impact\)", "ganyu_(genshin_impact)"),
        (r"a \(b \(c\)\)", "a_(b_(c))"),
        (r"\(^o^)/", r"\(^o^)/"),
        (r"\\(^o^\)/", r"\(^o^)/"),
        (r"\m/", r"\m/"),
        (">_<", ">_<"),
        ("^ ^", "^_^"),
        ("ＬＯＬＩ", "loli"),
        ("ｌｏｎｇ　ｈａｉｒ", "long_hair"),
        ("ranma_½", "ranma_½"),
        ("⑨", "⑨"),
        (" _ ", ""),
    ],
)
def test_spellings(text, name):
    assert tag_name(text) == name


@given(st.text(st.sampled_from("aA \\()_ｌＬ　İßΣ;:^<>") | st.characters(exclude_categories=["Cs"])))
def test_spelling_again_changes_nothing(text):
    assert tag_name(tag_name(text)) == tag_name(text)


def test_the_safety_rule_speaks_of_names_in_this_spelling():
    assert {name for name in MINOR_TAGS if tag_name(name) != name} == set()
