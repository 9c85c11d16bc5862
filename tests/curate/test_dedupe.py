"""Exact and near duplicates on tables made by hand."""

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedupe import exact, near


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"width": 50}, {"width": 51, "format": "JPEG"}),
        ({"format": "JPEG", "bytes": 9999}, {"format": "PNG"}),
        ({"bytes": 999}, {"bytes": 1000}),
        ({"tags": ["a"]}, {"tags": ["b", "c"]}),
        ({"created_at": 2000}, {"created_at": 1000}),
        ({"created_at": None}, {"created_at": 1000}),
    ],
)
def test_keeper_rule(worse, better, run_stage, make):
    # "a" would win by its id: something else must decide.
    rows = [make.picture("a", **worse), make.picture("b", **better)]
    for row in rows:
        row |= {"pixel_hash": "same", "tags": make.tags(*row["tags"])}
    assert run_stage(exact.STAGE, {"ingest": rows}) == [
        {"image_id": "a", "keep": False, "reason": "pixel_copy", "detail": None, "keeper": "b"},
        {"image_id": "b", "keep": True, "reason": None, "detail": None, "keeper": None},
    ]


def test_equal_copies_keep_the_smaller_id_and_byte_copies_are_one(run_stage, make):
    rows = [make.picture(name, pixel_hash="same") for name in "cab"]
    rows.append(make.picture("a", location="again.png", pixel_hash="same"))
    found = run_stage(exact.STAGE, {"ingest": rows})
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", None), ("b", "a"), ("c", "a")]


def test_files_that_cannot_be_read_are_not_duplicates_of_each_other(run_stage, make):
    rows = [make.picture(name, error="undecodable", pixel_hash=None) for name in "ab"]
    assert run_stage(exact.STAGE, {"ingest": rows}) == []


def near_hashes() -> st.SearchStrategy[list[int]]:
    """Hashes of which many are few bits from another."""
    bases = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)
    flips = st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=10)), max_size=25)
    return st.builds(
        lambda base, flip: [base[i % len(base)] ^ sum(1 << bit for bit in bits) for i, bits in flip], bases, flips
    )


@settings(max_examples=40, deadline=None)
@given(near_hashes(), st.integers(0, 8))
def test_the_search_finds_exactly_the_pairs_of_brute_force(hashes, distance):
    distinct = sorted(set(hashes))
    expected = {
        (i, j) for j in range(len(distinct)) for i in range(j) if (distinct[i] ^ distinct[j]).bit_count() <= distance
    }
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE hashes (phash UBIGINT, rank BIGINT)")
        if distinct:
            connection.executemany("INSERT INTO hashes VALUES (?, ?)", list(zip(distinct, range(99))))  # noqa: B905
        assert sorted(near.pairs(connection, distance)) == sorted(expected)


def test_every_dropped_picture_is_near_a_keeper_that_is_kept(run_stage, make):
    random = np.random.default_rng(0)
    bases = [int(number) for number in random.integers(0, 2**63, 12)]
    rows = []
    for number in range(200):
        phash = bases[number % 12]
        for bit in random.integers(0, 64, int(random.integers(0, 5))):
            phash ^= 1 << int(bit)
        rows.append(make.picture(f"{number:03}", phash=phash, width=int(random.integers(90, 110))))
    ids = [row["image_id"] for row in rows]
    found = {row["image_id"]: row for row in run_stage(near.STAGE, {"ingest": rows, "exact": make.kept(*ids)})}
    phash = {row["image_id"]: row["phash"] for row in rows}
    size = {row["image_id"]: row["width"] for row in rows}
    assert found.keys() == set(ids)
    for row in found.values():
        if row["keep"]:
            continue
        distance = (phash[row["image_id"]] ^ phash[row["keeper"]]).bit_count()
        assert distance <= 4
        assert row["detail"] == f'{{"distance":{distance}}}'
        assert found[row["keeper"]]["keep"]
        assert size[row["keeper"]] >= size[row["image_id"]]
    stay = [row["image_id"] for row in found.values() if row["keep"]]
    assert all((phash[a] ^ phash[b]).bit_count() > 4 for a in stay for b in stay if a != b)


def test_a_chain_is_not_one_group(run_stage, make):
    """a - b - c, where a and c are too far apart: c stays, for b is dropped and takes nobody with it."""
    rows = [make.picture("a", phash=0b0, bytes=3), make.picture("b", phash=0b1111, bytes=2)]
    rows.append(make.picture("c", phash=0b11111111, bytes=1))
    found = run_stage(near.STAGE, {"ingest": rows, "exact": make.kept("a", "b", "c")})
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", None), ("b", "a"), ("c", None)]


def test_blank_pictures_and_pictures_dropped_before_are_left_alone(run_stage, make):
    rows = [make.picture("a"), make.picture("b", flatness=0.99), make.picture("c")]
    decisions = [*make.kept("a", "b"), {"image_id": "c", "keep": False, "reason": "x", "keeper": "a"}]
    found = run_stage(near.STAGE, {"ingest": rows, "exact": decisions})
    assert [(row["image_id"], row["keep"]) for row in found] == [("a", True), ("b", True)]
