"""What people write beside pictures."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.sources.metadata import METADATA, parse, split_tags


def names(raw):
    return [(tag["name"], tag["category"]) for tag in parse(raw)[0].get("tags", [])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1girl, long hair,  solo", ["1girl", "long hair", "solo"]),
        ("1girl long_hair solo", ["1girl", "long_hair", "solo"]),
        ("animals;amphibians;frog", ["animals", "amphibians", "frog"]),
        ("1girl ;d one_eye_closed", ["1girl", ";d", "one_eye_closed"]),
        ("1girl, ;d, :3", ["1girl", ";d", ":3"]),
        ("1girl\nlong hair\n", ["1girl", "long hair"]),
        ("", []),
    ],
)
def test_lines_of_tags(text, expected):
    assert [part.strip() for part in split_tags(text)] == expected


def test_tags_are_normalised_and_keep_their_order():
    raw = {"tags": ["  Long Hair ", "SOLO", "", "solo", "ganyu \\(genshin impact\\)", "a \t b"]}
    assert [name for name, _ in names(raw)] == ["long_hair", "solo", "ganyu_(genshin_impact)", "a_b"]


def test_danbooru():
    raw = {
        "tag_string": "1girl hatsune_miku highres smile vocaloid wokada",
        "tag_string_general": "1girl smile",
        "tag_string_character": "hatsune_miku",
        "tag_string_copyright": "vocaloid",
        "tag_string_artist": "wokada",
        "tag_string_meta": "highres",
        "rating": "s",
        "score": 12,
        "fav_count": 34,
        "created_at": "2023-05-06T07:08:09.123-04:00",
        "source": "https://www.pixiv.net/artworks/1",
        "id": 56,
    }
    columns, errors = parse(raw)
    assert errors == []
    assert names(raw) == [
        ("1girl", "general"),
        ("hatsune_miku", "character"),
        ("highres", "meta"),
        ("smile", "general"),
        ("vocaloid", "copyright"),
        ("wokada", "artist"),
    ]
    assert columns["rating"] == "sensitive"
    assert (columns["score"], columns["favorites"], columns["post_id"]) == (12, 34, "56")
    assert columns["created_at"] == datetime(2023, 5, 6, 11, 8, 9, 123000, tzinfo=UTC)
    assert columns["source_url"] == "https://www.pixiv.net/artworks/1"


def test_gallery_dl_and_e621():
    raw = {"tags": "smile a_girl", "tags_character": "miku", "artist": ["Some Body"], "date": "2023-05-06 07:08:09"}
    assert names(raw) == [("smile", "general"), ("a_girl", "general"), ("miku", "character"), ("some_body", "artist")]
    assert parse(raw)[0]["created_at"] == datetime(2023, 5, 6, 7, 8, 9, tzinfo=UTC)
    raw = {"tags": {"general": ["smile"], "species": ["cat"], "artist": ["x"]}, "score": {"total": 5}, "sources": ["u"]}
    assert names(raw) == [("smile", "general"), ("cat", "general"), ("x", "artist")]
    assert (parse(raw)[0]["score"], parse(raw)[0]["source_url"]) == (5, "u")


@pytest.mark.parametrize(
    ("given_as", "rating"),
    [
        ("g", "general"),
        ("General", "general"),
        ("SAFE", "general"),
        ("s", "sensitive"),
        ("Sensitive", "sensitive"),
        ("q", "questionable"),
        ("Questionable", "questionable"),
        ("E", "explicit"),
        (" explicit ", "explicit"),
    ],
)
def test_ratings(given_as, rating):
    assert parse({"rating": given_as})[0]["rating"] == rating


@pytest.mark.parametrize("when", [1683356889, "1683356889", 1683356889.0, "2023-05-06T07:08:09Z"])
def test_times(when):
    assert parse({"created_at": when})[0]["created_at"] == datetime(2023, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rating": "good"},
        {"rating": ["g"]},
        {"score": "many"},
        {"score": True},
        {"score": float("nan")},
        {"fav_count": -1},
        {"fav_count": 10**30},
        {"created_at": "yesterday"},
        {"created_at": 1e300},
        {"tags": 5},
        {"tags": [None]},
        {"tags": [["a"]]},
        {"caption": {"en": "A girl."}},
        {"id": 1.5},
    ],
)
def test_wrong_values_are_left_out_with_an_error_that_names_the_key(wrong):
    columns, errors = parse(wrong | {"post_id": "1"})
    assert columns == {"post_id": "1"} or "id" in wrong
    assert [error.partition(":")[0] for error in errors] == list(wrong) or "id" in wrong


def test_the_next_key_is_asked_when_one_is_wrong():
    columns, errors = parse({"caption": 5, "description": "A girl."})
    assert columns == {"caption": "A girl."}
    assert len(errors) == 1


TAG_KEYS = ("tags", "tag_string", "tag_string_artist", "tags_meta", "artist")
KEYS = st.sampled_from((*TAG_KEYS, "rating", "score", "fav_count", "created_at", "date", "source", "caption", "id"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a b", "1e999", "\ud800", "²"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["artist", "total", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES))
def test_whatever_json_holds_can_be_stored(raw):
    columns, errors = parse(raw)
    assert pa.Table.from_pylist([columns], METADATA).num_rows == 1
    "".join(errors)
