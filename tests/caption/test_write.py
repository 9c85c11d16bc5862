"""Tags as they are written, in lines and in XML."""

import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption.sections import people, section
from caption.write import KAOMOJI, NO_XML, make_tag, make_text, spell, write

CATEGORIES = ("general", "character", "copyright", "artist", "meta", "rating", "quality", "year")


@pytest.mark.parametrize("name", ["1girl", "2boys", "6+girls", "multiple_girls", "1other", "solo", "no_humans"])
def test_person_counts_are_a_group_of_their_own(name):
    assert make_tag(name, "general").group == "count"


@pytest.mark.parametrize("name", ["girls_und_panzer", "solo_focus", "1girl_left", "boys"])
def test_what_only_looks_like_a_person_count_stays(name):
    assert make_tag(name, "copyright").group == "copyright"


def test_what_is_not_about_the_picture_is_no_tag():
    assert make_tag("highres", "meta") is None
    assert make_tag("frog", "whatever") is None


def test_underscores_become_blanks_but_for_faces():
    assert spell("ganyu_(genshin_impact)") == "ganyu (genshin impact)"
    assert all(spell(face) == face for face in KAOMOJI)


def xml(*tags, sentences=""):
    found = [make_tag(name, category) for name, category in tags]
    return write("xml", sorted([tag for tag in found if tag], key=lambda tag: tag.rank), sentences)


def general(*names):
    return [(name, "general") for name in names]


def test_who_is_alone_has_what_is_personal():
    tags = general("1girl", "solo", "blue_hair", "white_dress", ">_<", "holding_sword", "white_background", "frog")
    said = [("general", "rating"), ("masterpiece", "quality"), ("newest", "year")]
    found = xml(
        *tags, ("miku", "character"), ("vocaloid", "copyright"), ("wokada", "artist"), *said, sentences="A & B."
    )
    assert found.splitlines() == [
        "<character_1>",
        "<n>miku</n>",
        "<gender>1girl</gender>",
        "<appearance>blue hair</appearance>",
        "<clothing>white dress</clothing>",
        "<expression>&gt;_&lt;</expression>",
        "<action>holding sword</action>",
        "</character_1>",
        "<general_tags>",
        "<count>1girl, solo</count>",
        "<series>vocaloid</series>",
        "<artists>wokada</artists>",
        "<rating>general</rating>",
        "<background>white background</background>",
        "<other>frog</other>",
        "<quality>masterpiece</quality>",
        "<year>newest</year>",
        "</general_tags>",
        "<caption>A &amp; B.</caption>",
    ]


def test_of_several_nobody_knows_who_has_what():
    found = xml(*general("2girls", "multiple_girls", "blue_hair"), ("miku", "character"), ("rin", "character"))
    root = ET.fromstring(f"<x>{found}</x>")
    assert [child.tag for child in root] == ["character_1", "character_2", "general_tags"]
    assert [child.findtext("n") for child in root] == ["miku", "rin", None]
    assert [child.findtext("gender") for child in root] == ["1girl", "1girl", None]
    assert root.findtext("general_tags/appearance") == "blue hair"
    mixed = ET.fromstring(f"<x>{xml(*general('1girl', '1boy'), ('miku', 'character'))}</x>")
    assert mixed.find("character_1/gender") is None


def test_nobody_has_no_block():
    assert xml(*general("no_humans", "blue_sky")).startswith("<general_tags>\n<count>no humans</count>\n<environment>")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (["1girl", "solo"], ["girl"]),
        (["solo"], [""]),
        (["2girls", "multiple girls", "1boy"], ["girl", "girl", "boy"]),
        (["6+girls"], []),
        (["1boy", "multiple girls"], []),
        (["999999999girls"], []),
        (["no humans"], []),
        ([], []),
    ],
)
def test_people(counts, expected):
    assert people(counts) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blue_hair", "appearance"),
        ("hair_bow", "clothing"),
        ("closed_eyes", "expression"),
        ("looking_at_viewer", "action"),
        ("from_behind", "perspective"),
        ("rin_(vocaloid)", "other"),
        ("", "other"),
    ],
)
def test_sections(name, expected):
    assert section(name) == expected


@given(
    st.lists(st.tuples(st.text(min_size=1), st.sampled_from(CATEGORIES)), unique=True),
    st.sets(st.sampled_from(["1girl", "solo", "2boys", "6+girls", "multiple_girls", "no_humans"])),
    st.text(),
)
def test_xml_is_well_formed_and_complete(tags, counts, sentences):
    tags = [*tags, *general(*counts)]
    root = ET.fromstring(f"<x>{xml(*tags, sentences=sentences)}</x>")
    written = [text for part in root.iter() if part.tag != "caption" for text in (part.text or "").split(", ")]
    found = [make_tag(name, category) for name, category in tags]
    words = [tag.text for tag in found if tag and tag.text.isascii() and tag.text.isalnum()]
    assert not Counter(words) - Counter(written), "every tag stands somewhere"
    if NO_XML.search(sentences) is None and sentences:
        assert root.findtext("caption").splitlines() == sentences.splitlines()


@given(st.text())
def test_text_in_the_picture_is_one_line_in_one_pair_of_quotes(text):
    made = make_text(text)
    if made:
        assert made.text.count('"') == 2
        assert made.text.splitlines() == [made.text]
        assert made.text[6:-1] == " ".join(text.split()).replace('"', "'")
        ET.fromstring(f"<x>{made.xml}</x>")
    else:
        assert not text.strip() or len(" ".join(text.split())) > 200
