"""Vocabularies: aliases and implications of any quality."""

import csv
import json
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption.graph import closure, cycles, without
from caption.vocabulary import Entry, build, read_pairs, read_tags, read_vocabulary
from shared.errors import UserError
from shared.safety import MINOR_TAGS

NAMES = ("a", "b", "c", "d", "e", "f", "loli", "child")
PAIRS = st.lists(st.tuples(st.sampled_from(("", *NAMES)), st.sampled_from(("", *NAMES))), max_size=14)
TAGS = st.dictionaries(st.sampled_from(NAMES), st.builds(Entry, st.just("general"), st.integers(0, 3)))


def general(**pictures):
    return {name: Entry("general", count) for name, count in pictures.items()}


def problems(vocabulary):
    return [tuple(problem) for problem in vocabulary.problems]


def test_chains_are_followed():
    found = build(general(c=9), [("a", "b"), ("b", "c")], [("x", "a"), ("c", "y"), ("y", "z")])
    assert found.aliases == {"a": "c", "b": "c"}
    assert found.implied == {"x": ("c", "y", "z"), "c": ("y", "z"), "y": ("z",)}
    assert found.problems == ()
    assert found.resolve(" A ") == "c"


LOOP = [("b", "c"), ("c", "b")]


@pytest.mark.parametrize(
    ("pairs", "aliases", "expected"),
    [
        ([("a", ""), ("b", "b")], {}, [("nothing", "a", ("",)), ("nothing", "b", ("b",))]),
        ([("many", "few")], {}, [("tag", "many", ("few",))]),
        ([("a", "few"), ("a", "many")], {"a": "many"}, [("ambiguous", "a", ("many", "few"))]),
        ([("a", "y"), ("a", "x")], {"a": "x"}, [("ambiguous", "a", ("x", "y"))]),
        ([*LOOP, ("a", "b")], {"a": "b"}, [("alias cycle", "b", ("c",)), ("alias cycle", "c", ("b",))]),
        ([("loli", "petite")], {}, [("safety", "loli", ("petite",))]),
        ([("lolicon", "loli"), ("rori", "lolicon")], {"lolicon": "loli", "rori": "loli"}, []),
        ([("x", "adult"), ("x", "loli")], {"x": "loli"}, [("ambiguous", "x", ("loli", "adult"))]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_aliases_is_reported(pairs, aliases, expected):
    found = build(general(few=1, many=5, adult=9), pairs, [])
    assert found.aliases == aliases
    assert problems(found) == expected


def test_what_is_wrong_with_implications_is_reported():
    pairs = [("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("old", "new"), ("e", ""), ("x", "a")]
    found = build({}, [("old", "new")], pairs)
    assert found.implied == {"a": ("b",), "c": ("d",), "x": ("a", "b")}
    assert problems(found) == [
        ("nothing", "e", ("",)),
        ("nothing", "old", ("new",)),
        ("implied cycle", "b", ("c",)),
        ("implied cycle", "c", ("b",)),
    ]


@given(TAGS, PAIRS, PAIRS, st.randoms())
def test_what_is_built_is_sound_and_does_not_depend_on_order(tags, aliases, implications, random):
    found = build(tags, aliases, implications)
    assert not set(found.aliases) & (set(found.aliases.values()) | tags.keys()), "names resolve once and for all"
    assert all(target in MINOR_TAGS for name, target in found.aliases.items() if name in MINOR_TAGS)
    for name, parents in found.implied.items():
        assert name not in parents
        assert list(parents) == sorted(set(parents))
        assert not found.aliases.keys() & {name, *parents}
        assert all(set(found.implied.get(parent, ())) <= set(parents) for parent in parents), "closed"
    random.shuffle(aliases)
    random.shuffle(implications)
    assert build(tags, aliases, implications) == found


EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20)


@given(EDGES)
def test_cycles_and_closure_are_those_of_warshall(edges):
    graph = {str(a): frozenset(str(c) for b, c in edges if a == b) for a, _ in edges}

    def reach(pairs):
        found = set(pairs)
        for middle, start, end in product(range(8), repeat=3):
            if (start, middle) in found and (middle, end) in found:
                found.add((start, end))
        return found

    all_pairs = reach(edges)
    on_cycle = {(a, b) for a, b in edges if a == b or (b, a) in all_pairs}
    assert cycles(graph) == {(str(a), str(b)) for a, b in on_cycle}
    left = reach(set(edges) - on_cycle)
    found = closure(without(graph, cycles(graph)))
    assert {(name, end) for name, ends in found.items() for end in ends} == {(str(a), str(b)) for a, b in left}


def test_tags_as_autocomplete_tools_have_them(tmp_path: Path):
    file = tmp_path / "tags.csv"
    file.write_text(
        "1girl,0,6008644,\"1girls,sole_female\"\nhatsune_miku,4,100,\n"
        "nagatoro,4,5,\"ijiranaide,_nagatoro-san,Nagatoro Hayase\"\n"
    )  # fmt: skip
    tags, aliases = read_tags(file)
    assert tags == {
        "1girl": Entry("general", 6008644), "hatsune_miku": Entry("character", 100), "nagatoro": Entry("character", 5),
    }  # fmt: skip
    assert aliases == [
        ("1girls", "1girl"),
        ("sole_female", "1girl"),
        ("ijiranaide,_nagatoro-san", "nagatoro"),
        ("nagatoro_hayase", "nagatoro"),
    ]


ROWS = [
    {"antecedent_name": "longhair", "consequent_name": "long_hair", "status": "active", "id": 1},
    {"antecedent_name": "Old Name", "consequent_name": "1", "status": "active", "id": 2},
    {"antecedent_name": "x", "consequent_name": "y", "status": "deleted", "id": 3},
    {"antecedent_name": "z", "consequent_name": None, "status": "active", "id": 4},
]


def write(path: Path, rows) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_dumps_are_read_in_three_forms(kind, tmp_path):
    found = read_pairs(write(tmp_path / f"dump.{kind}", ROWS))
    assert found == ([("longhair", "long_hair"), ("old_name", "1"), ("z", "")], [("x", "y")])


def test_what_is_not_active_is_ignored_and_reported(tmp_path):
    file = write(tmp_path / "dump.jsonl", ROWS)
    for found in read_vocabulary(None, file, None), read_vocabulary(None, None, file):
        assert "x" not in found.aliases.keys() | found.implied.keys()
        assert problems(found) == [("not active", "x", ("y",)), ("nothing", "z", ("",))]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gone.jsonl", None, ["gone.jsonl", "No such file"]),
        ("dump.txt", "", ["dump.txt", ".csv, .jsonl, .parquet"]),
        ("dump.jsonl", '{"antecedent_name": "a", "status": "active"}\n', ["dump.jsonl", "'a'", "consequent_name"]),
        ("dump.jsonl", "[1]\n", ["dump.jsonl", "[1]"]),
        ("dump.csv", "a,b\n1,2\n", ["dump.csv", "antecedent_name"]),
        ("dump.jsonl", '{"antecedent_name": 5, "consequent_name": "x", "status": "active"}\n', ["dump.jsonl", "5"]),
    ],
)
def test_a_bad_dump_is_named(name, text, words, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_pairs(tmp_path / name)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("row", ["a,0,1", "a,9,1,", "a,0,many,", "name,category,count,aliases"])
def test_a_bad_list_of_tags_is_named(row, tmp_path):
    file = tmp_path / "tags.csv"
    file.write_text(f"b,0,1,\n{row}\n")
    with pytest.raises(UserError, match=r"tags.csv: \['\w+', .*0 general, 1 artist, 3 copyright"):
        read_tags(file)


def test_the_names_of_a_tagger_against_the_tags_of_danbooru(shared_data: Path):
    """The numbers are those of ../shared/data/README.md."""
    vocabulary = read_vocabulary(shared_data / "tags/danbooru.csv", None, None)
    with (shared_data / "tags/wd-v1-4-moat-tagger-v2.selected_tags.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file) if row["category"] != "9"]
    odd = [name for name in names if name not in vocabulary.tags]
    resolved = [name for name in odd if vocabulary.resolve(name) in vocabulary.tags]
    assert (len(odd), len(resolved), len(odd) - len(resolved)) == (299, 203, 96)
    assert len(vocabulary.tags) == 140_782
    assert all(name in vocabulary.tags or name in vocabulary.aliases for name in names if name not in odd)
    assert {problem.kind for problem in vocabulary.problems} == {"nothing", "tag", "ambiguous"}
    assert ("ambiguous", "thighhigh", ("thighhighs", "single_thighhigh")) in vocabulary.problems


def test_the_safety_rule_knows_all_names_that_danbooru_has_for_its_tags(shared_data: Path):
    _, aliases = read_tags(shared_data / "tags/danbooru.csv")
    assert [pair for pair in aliases if (pair[0] in MINOR_TAGS) != (pair[1] in MINOR_TAGS)] == []
