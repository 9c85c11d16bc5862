"""The stage `tags`, against one picture after the other in plain Python."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import caption.pictures
import curate.filter
from caption.lookup import Lookup
from caption.normalise import NORMAL, normalise
from caption.persons import contradicts, persons
from caption.tags import STAGE, TagsSettings, make_lookup
from caption.vocabulary import Entry, Vocabulary, build
from shared.engine import LocalEngine
from shared.safety import MINOR_TAGS
from shared.stages import DECISIONS, TAG, Job
from shared.tables import PART_ROWS

TAGS = {
    "long_hair": Entry("general", 50),
    "very_long_hair": Entry("general", 20),
    "hair": Entry("general", 90),
    "hatsune_miku": Entry("character", 9),
    "hatsune_miku_(append)": Entry("character", 2),
    "vocaloid": Entry("copyright", 12),
    "2girls": Entry("general", 9),
    "multiple_girls": Entry("general", 30),
    "loli": Entry("general", 3),
    "oppai_loli": Entry("general", 1),
}
ALIASES = [("longhair", "long_hair"), ("miku", "hatsune_miku"), ("rori", "loli"), ("lolita", "rori"), ("old", "new")]
IMPLICATIONS = [
    ("very_long_hair", "longhair"),
    ("long_hair", "hair"),
    ("hatsune_miku_(append)", "hatsune_miku"),
    ("hatsune_miku", "vocaloid"),
    ("2girls", "multiple_girls"),
    ("oppai_loli", "loli"),
    ("small", "child"),
]
VOCABULARY = build(TAGS, ALIASES, IMPLICATIONS)

INPUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.list_(TAG)),
        ("rating", pa.string()),
        ("tagger", pa.list_(TAG)),
        ("guess", pa.string()),
    ]
)


def tag(name: str, category: str = "general", origin: str = "source", confidence: float | None = None):
    return {"name": name, "category": category, "origin": origin, "confidence": confidence}


def seen(name: str, category: str = "general", confidence: float = 0.5):
    return tag(name, category, "tagger", confidence)


def normal(source, tagger=(), rating=None, guess=None, vocabulary=VOCABULARY, deny=(), drop_unknown=False):
    """The row of one picture."""
    row = {"image_id": "a", "source": source, "rating": rating, "tagger": list(tagger), "guess": guess}
    lookup = Lookup(vocabulary, frozenset(map(vocabulary.resolve, deny)), drop_unknown)
    (found,) = normalise(pa.RecordBatch.from_pylist([row], INPUT), lookup).to_pylist()
    return found


def names(row):
    return [one["name"] for one in row["tags"]]


def gone(row):
    return [(one["name"], one["origin"], one["reason"]) for one in row["removed"]]


def test_source_and_tagger_become_one():
    found = normal(
        [tag("LongHair"), tag("MIKU"), tag("smile")],
        [seen("long hair", confidence=0.75), seen("solo", confidence=0.25), seen("longhair"), seen("smile")],
    )
    assert found["tags"] == [
        tag("long_hair"),
        tag("hatsune_miku", "character"),
        tag("smile"),
        seen("solo", confidence=0.25),
        tag("hair", origin="rule"),
        tag("vocaloid", "copyright", "rule"),
    ]
    assert gone(found) == [
        ("LongHair", "source", "alias"),
        ("MIKU", "source", "alias"),
        ("longhair", "tagger", "alias"),
    ]


def test_of_two_categories_the_one_that_is_not_general_wins_unless_the_vocabulary_knows():
    found = normal([tag("somebody"), tag("hair", "meta")], [seen("somebody", "artist"), seen("somebody", "character")])
    assert found["tags"] == [tag("somebody", "artist"), tag("hair")]


def test_what_another_tag_says_is_there_and_marked():
    found = normal([tag("hatsune_miku_(append)"), tag("hair"), tag("very_long_hair")])
    assert names(found) == [
        "hatsune_miku_(append)", "hair", "very_long_hair", "hatsune_miku", "vocaloid", "long_hair",
    ]  # fmt: skip
    assert found["implied"] == ["hair", "long_hair"], "no characters and series"


def test_a_denied_tag_is_denied_by_all_its_names():
    found = normal([tag("very long hair"), tag("longhair"), tag("smile")], deny=["VERY_long_hair", "old"])
    assert (names(found), found["implied"]) == (["long_hair", "smile", "hair"], ["hair"])
    assert gone(found) == [("very long hair", "source", "denied"), ("longhair", "source", "alias")]
    found = normal([tag("very_long_hair"), tag("new")], deny=["longhair", "old"])
    assert names(found) == ["very_long_hair", "hair"]


def test_unknown_tags_stay_unless_they_are_not_wanted():
    given_ = [tag("bangs"), tag("somebody", "artist"), tag("toddler"), tag("hair")]
    assert normal(given_)["tags"] == given_
    found = normal(given_, drop_unknown=True)
    assert (names(found), gone(found)) == (
        ["toddler", "hair"],
        [("bangs", "source", "unknown"), ("somebody", "source", "unknown")],
    )


def test_the_tagger_does_not_contradict_who_is_there():
    found = normal([tag("1girl"), tag("2boys")], [seen("2girls"), seen("multiple boys"), seen("1boy"), seen("1other")])
    assert names(found) == ["1girl", "2boys", "multiple_boys", "1other"], "nor what follows from it"
    assert gone(found) == [("2girls", "tagger", "conflict"), ("1boy", "tagger", "conflict")]
    assert names(normal([], [seen("1girl"), seen("2girls")])) == ["1girl", "2girls", "multiple_girls"]


@pytest.mark.parametrize(
    ("one", "other", "contradict"),
    [
        ("1girl", "2girls", True),
        ("1girl", "multiple_girls", True),
        ("6+girls", "multiple_girls", False),
        ("6+girls", "5girls", True),
        ("1girl", "2boys", False),
        ("1girl", "1girl", False),
    ],
)
def test_contradictions_are_mutual(one, other, contradict):
    assert contradicts(persons(one), [persons(other)]) == contradict
    assert contradicts(persons(other), [persons(one)]) == contradict


@pytest.mark.parametrize(
    ("rating", "guess", "expected", "conflicts"),
    [
        ("general", "explicit", "general", ["explicit"]),
        ("general", "general", "general", []),
        (None, "sensitive", "sensitive", []),
        ("sensitive", None, "sensitive", []),
        (None, None, None, []),
    ],
)
def test_the_rating_is_the_source_s_else_the_tagger_s(rating, guess, expected, conflicts):
    found = normal([], [], rating, guess)
    assert found["rating"] == expected
    assert [tuple(one.values()) for one in found["removed"]] == [
        (name, "rating", "tagger", "conflict") for name in conflicts
    ]


def plain(source, tagger, vocabulary, denied, drop_unknown):
    """Names with categories and origins, implied names, removed names with reasons."""
    found: dict[str, list[str]] = {}
    implied: dict[str, None] = {}
    removed = []
    said = [persons(vocabulary.resolve(one["name"])) for one in source]
    valid = []
    for one in [*source, *tagger]:
        name = vocabulary.resolve(one["name"])
        if one["origin"] == "tagger" and persons(name) and contradicts(persons(name), filter(None, said)):
            removed.append((one["name"], "conflict"))
        else:
            valid.append((one, name))

    def reason(name: str) -> str:
        if name in MINOR_TAGS:
            return ""
        unknown = drop_unknown and name not in vocabulary.tags
        return "empty" if not name else "denied" if name in denied else "unknown" if unknown else ""

    def add(name: str, category: str, origin: str) -> None:
        category = vocabulary.tags[name].category if name in vocabulary.tags else category
        there = found.setdefault(name, [category, origin])
        if there[0] == "general":
            there[0] = category

    for one, name in valid:
        if not reason(name):
            add(name, one["category"], one["origin"])
        why = reason(name) or ("alias" if vocabulary.resolve(one["name"]) != Vocabulary().resolve(one["name"]) else "")
        if why:
            removed.append((one["name"], why))
    for _, name in valid:
        for parent in vocabulary.implied.get(name, ()):
            if not reason(parent):
                add(parent, "general", "rule")
    for name in found:
        for parent in vocabulary.implied.get(name, ()):
            general = parent not in vocabulary.tags or vocabulary.tags[parent].category == "general"
            if not reason(parent) and general and parent not in MINOR_TAGS:
                implied[parent] = None
    return [(name, *rest) for name, rest in found.items()], list(implied), sorted(removed)


GIVEN = st.sampled_from(
    [
        *TAGS,
        *(name for pair in (*ALIASES, *IMPLICATIONS) for name in pair),
        *("1girl", "3girls", "1boy", "smile", "LOLI", "Very Long Hair", " _", "toddler", "child_on_child"),
    ]
)
CATEGORIES = st.sampled_from(["general", "character", "artist"])
SOURCE = st.lists(st.builds(tag, GIVEN, CATEGORIES), max_size=8)
TAGGER = st.lists(st.builds(seen, GIVEN, CATEGORIES, st.floats(0, 1, width=32)), max_size=8)


@given(st.lists(st.tuples(SOURCE, TAGGER | st.none()), max_size=4), st.sets(GIVEN), st.booleans())
def test_batches_are_as_picture_after_picture(pictures, deny, drop_unknown):
    denied = frozenset(map(VOCABULARY.resolve, deny))
    rows = [{"image_id": str(n), "source": own, "tagger": guess} for n, (own, guess) in enumerate(pictures)]
    batch = pa.RecordBatch.from_pylist(rows, INPUT)
    lookup = Lookup(VOCABULARY, denied, drop_unknown)
    found = normalise(batch, lookup)
    found.validate(full=True)
    for (source, tagger), row in zip(pictures, found.to_pylist(), strict=True):
        tags = [(one["name"], one["category"], one["origin"]) for one in row["tags"]]
        removed = sorted((one["name"], one["reason"]) for one in row["removed"])
        assert (tags, row["implied"], removed) == plain(source, tagger or [], VOCABULARY, denied, drop_unknown)
        for one in row["tags"]:
            assert (one["confidence"] is not None) == (one["origin"] == "tagger")
            if one["origin"] == "tagger":
                first = next(given for given in tagger if VOCABULARY.resolve(given["name"]) == one["name"])
                assert math.isclose(one["confidence"], first["confidence"])
    assert normalise(batch.slice(1), lookup).equals(found.slice(1)), "in any company"
    growing = Lookup(VOCABULARY, denied, drop_unknown)
    for row in range(len(batch)):
        assert normalise(batch.slice(row, 1), growing).equals(found.slice(row, 1)), "whatever was looked up before"


@given(SOURCE, TAGGER, st.sets(GIVEN), st.booleans())
def test_normalising_again_changes_nothing(source, tagger, deny, drop_unknown):
    once = normal(source, tagger, deny=deny, drop_unknown=drop_unknown)
    again = normal(once["tags"], deny=deny, drop_unknown=drop_unknown)
    assert [(one["name"], one["category"]) for one in again["tags"]] == [
        (one["name"], one["category"]) for one in once["tags"]
    ]
    assert sorted(again["implied"]) == sorted(once["implied"])
    assert again["removed"] == []


SPELLINGS = st.sampled_from([str, str.upper, str.title, lambda name: f" {name.replace('_', ' ')} "])
MINORS = st.builds(lambda name, spell: spell(name), st.sampled_from(sorted(MINOR_TAGS)), SPELLINGS)
WORDS = st.sampled_from(["adult", "loli", "kodomo_doushi", "child_on_child", "child", "x", *sorted(MINOR_TAGS)[:5]])
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=10)


@given(MINORS, st.booleans(), PAIRS, PAIRS, st.sets(WORDS), st.booleans(), st.sets(WORDS | st.just("1girl")))
def test_tags_of_the_safety_rule_survive_everything(name, by_tagger, aliases, implications, deny, drop, known):
    vocabulary = build({one: Entry("general", 1) for one in known}, aliases, implications)
    source, tagger = ([], [seen(name)]) if by_tagger else ([tag(name)], [])
    found = normal(source, tagger, vocabulary=vocabulary, deny=deny, drop_unknown=drop)
    assert MINOR_TAGS.intersection(names(found))
    assert not MINOR_TAGS.intersection(found["implied"]), "captions do not hide it either"


@given(WORDS, PAIRS)
def test_an_alias_of_such_a_tag_becomes_one(name, aliases):
    vocabulary = build({}, [*aliases, ("nickname", name)], [])
    if name in MINOR_TAGS and "nickname" not in dict(aliases):
        assert vocabulary.resolve("Nickname") in MINOR_TAGS


def test_such_a_tag_cannot_be_denied():
    with pytest.raises(ValidationError, match="the safety rule must see 'loli'"):
        TagsSettings(deny=("smile", "LOLI"))
    assert curate.filter.MINOR_TAGS <= MINOR_TAGS


def test_dropping_the_unknown_needs_a_vocabulary():
    with pytest.raises(ValidationError, match="needs a vocabulary"):
        TagsSettings(drop_unknown=True)


@pytest.fixture
def run(tmp_path: Path):
    """Run the stage on rows of `merge` and `tagger`."""
    text = pa.string()
    schema = pa.schema([("image_id", text), ("tags", pa.list_(TAG)), ("rating", text)])

    def start(out: str = "out", workers: int = 1, settings: Any = None, **tables: list[dict[str, Any]]) -> Path:
        kept = [{"image_id": row["image_id"], "keep": row["image_id"] != "x"} for row in tables["merge"]]
        folders = {}
        for name, rows in {"near": kept, **tables}.items():
            folders[name] = tmp_path / name
            folders[name].mkdir(exist_ok=True)
            table = pa.Table.from_pylist(rows, DECISIONS if name == "near" else schema)
            pq.write_table(table, folders[name] / "part-00000.parquet")
        (tmp_path / out).mkdir()
        STAGE.run(
            Job(
                source="",
                settings=TagsSettings(**(settings or {})),
                folder=tmp_path / out,
                tables=folders,
                deciders=("near",),
                engine=LocalEngine(workers),
            )
        )
        return tmp_path / out

    return start


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob("*")) for row in pq.read_table(part).to_pylist()]


def test_without_any_file_it_spells_and_unites(run):
    merge = [
        {"image_id": "b", "tags": [tag("Long Hair")], "rating": None},
        {"image_id": "a", "tags": [], "rating": "sensitive"},
        {"image_id": "x", "tags": [tag("smile")]},
    ]
    tagger = [{"image_id": "b", "tags": [seen("long_hair"), seen("solo")], "rating": "general"}]
    folder = run(merge=merge, tagger=tagger)
    first, second = rows(folder)
    assert first == {"image_id": "a", "tags": [], "rating": "sensitive", "implied": [], "removed": []}
    assert (second["image_id"], second["rating"]) == ("b", "general")
    assert second["tags"] == [tag("long_hair"), seen("solo")]
    assert pq.read_schema(folder / "part-00000.parquet") == NORMAL
    alone = run("alone", merge=merge)
    assert [(row["image_id"], names(row), row["rating"]) for row in rows(alone)] == [
        ("a", [], "sensitive"), ("b", ["long_hair"], None),
    ]  # fmt: skip
    assert rows(run("nothing", merge=[])) == []


def test_files_say_what_is_canonical_and_what_was_wrong_with_them(run, tmp_path, capsys):
    (tmp_path / "tags.csv").write_text('long_hair,0,9,"longhair,/lh"\nmiku,4,5,\nshort_hair,0,3,longhair\n')
    dump = [("very_long_hair", "/lh", "active"), ("miku", "vocaloid", "deleted")]
    keys = ("antecedent_name", "consequent_name", "status")
    (tmp_path / "implied.jsonl").write_text(
        "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in dump)
    )
    (tmp_path / "more.csv").write_text(f"{','.join(keys)}\nhatsune_miku,miku,active\n")
    settings = {
        "vocabulary": tmp_path / "tags.csv",
        "aliases": tmp_path / "more.csv",
        "implications": tmp_path / "implied.jsonl",
    }
    given_ = [tag("very_long_hair"), tag("hatsune_miku"), tag("longhair")]
    (found,) = rows(run(merge=[{"image_id": "a", "tags": given_}], settings=settings))
    assert [(one["name"], one["category"]) for one in found["tags"]] == [
        ("very_long_hair", "general"), ("miku", "character"), ("long_hair", "general"),
    ]  # fmt: skip
    assert found["implied"] == ["long_hair"]
    output = capsys.readouterr().out
    assert "3 tags, 3 aliases, 1 tags that imply others" in output
    assert "1 x ambiguous, for example longhair: long_hair, short_hair" in output
    assert "2 x alias" in output


def test_bytes_do_not_depend_on_workers_or_parts(run, monkeypatch):
    merge = [
        {"image_id": f"{n:06}", "tags": [tag(f"tag{n % 50}"), tag("Frog")], "rating": "general"}
        for n in range(PART_ROWS + 3)
    ]
    folder, again = run(workers=2, merge=merge), run("again", merge=merge)
    assert [path.name for path in sorted(folder.iterdir())] == ["part-00000.parquet", "part-00001.parquet"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    monkeypatch.setattr(caption.pictures, "PART_ROWS", 7)
    assert rows(run("cut", merge=merge[:40])) == rows(folder)[:40]


def test_a_tagger_s_vocabulary_goes_through(shared_data: Path):
    settings = TagsSettings(vocabulary=shared_data / "tags/danbooru.csv", deny=("see-through",))
    lookup = make_lookup(settings)
    row = {"image_id": "a", "source": [tag("bangs"), tag("hand_on_hip"), tag("see-through"), tag("traditional_media")]}
    (found,) = normalise(pa.RecordBatch.from_pylist([row], INPUT), lookup).to_pylist()
    assert [(one["name"], one["category"]) for one in found["tags"]] == [
        ("bangs", "general"), ("hand_on_own_hip", "general"), ("traditional_media", "meta"),
    ]  # fmt: skip
    assert gone(found) == [("hand_on_hip", "source", "alias"), ("see-through", "source", "denied")]
