"""Exact and near duplicates on tables made by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from curate import filter as filter_stage
from curate.dedupe import exact, near
from curate.dedupe.descriptor import describe
from curate.merge import MERGED

NEAR_TABLE = {"near": near.NEAR}
LISTS = ("locations", "duplicates", "source_urls")


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"width": 50}, {"width": 51, "format": "JPEG"}),
        ({"format": "GIF", "bytes": 9999}, {"format": "WEBP", "bytes": 99999}),
        ({"format": "JPEG", "bytes": 9999, "quality": 80}, {"format": "JPEG", "quality": 90}),
        ({"format": "PNG", "bytes": 9999}, {"format": "JPEG", "quality": 50}),  # A re-save: the pixels are the same.
        ({"tags": ["a"], "bytes": 9999}, {"tags": ["b", "c"], "format": "BMP"}),
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


def test_a_lossless_file_beats_a_lossy_one_it_was_not_made_from(run_stage, make):
    rows = [make.picture("a", format="JPEG", quality=99), make.picture("b", bytes=1)]
    found = run_stage(near.STAGE, {"ingest": rows, "exact": make.kept("a", "b")}, NEAR_TABLE)
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", "b"), ("b", None)]


def test_the_order_of_the_criteria_is_a_setting(run_stage, make):
    rows = [make.picture("a", width=50, created_at=1000), make.picture("b", width=60, created_at=2000)]
    for row in rows:
        row["pixel_hash"] = "same"
    found = run_stage(exact.STAGE, {"ingest": rows}, keeper=["age", "pixels"])
    assert [row["keeper"] for row in found] == [None, "a"]


def test_a_hash_of_all_pixels_that_was_made_later_counts(run_stage, make):
    rows = [make.picture("a", format="JPEG", pixel_hash=None), make.picture("b"), make.picture("c", pixel_hash=None)]
    found = run_stage(exact.STAGE, {"ingest": rows, "pixels": [{"image_id": "a", "pixel_hash": "b"}]})
    assert [row["keeper"] for row in found] == [None, "a", None]


def test_equal_copies_keep_the_smaller_id_and_byte_copies_are_one(run_stage, make):
    rows = [make.picture(name, pixel_hash="same") for name in "cab"]
    rows.append(make.picture("a", location="again.png", pixel_hash="same"))
    found = run_stage(exact.STAGE, {"ingest": rows})
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", None), ("b", "a"), ("c", "a")]


def test_files_that_cannot_be_read_are_not_duplicates_of_each_other(run_stage, make):
    rows = [make.picture(name, error="undecodable", pixel_hash=None) for name in "ab"]
    assert run_stage(exact.STAGE, {"ingest": rows}) == []


def test_every_dropped_picture_is_near_a_keeper_that_is_kept(run_stage, make):
    random = np.random.default_rng(0)
    bases = [int(number) for number in random.integers(0, 2**63, 12)]
    rows = []
    for number in range(200):
        phash = bases[number % 12]
        for bit in random.integers(0, 64, int(random.integers(0, 5))):
            phash ^= 1 << int(bit)
        side = int(random.integers(90, 110))
        rows.append(make.picture(f"{number:03}", phash=phash, width=side, height=side))
    ids = [row["image_id"] for row in rows]
    found = {
        row["image_id"]: row for row in run_stage(near.STAGE, {"ingest": rows, "exact": make.kept(*ids)}, NEAR_TABLE)
    }
    phash = {row["image_id"]: row["phash"] for row in rows}
    size = {row["image_id"]: row["width"] for row in rows}
    assert found.keys() == set(ids)
    for row in found.values():
        if row["keep"]:
            continue
        distance = (phash[row["image_id"]] ^ phash[row["keeper"]]).bit_count()
        assert distance <= 4
        assert json.loads(row["detail"])["distance"] == distance
        assert found[row["keeper"]]["keep"]
        assert size[row["keeper"]] >= size[row["image_id"]]
    stay = [row["image_id"] for row in found.values() if row["keep"]]
    assert all((phash[a] ^ phash[b]).bit_count() > 4 for a in stay for b in stay if a != b)


def test_a_chain_is_not_one_group(run_stage, make):
    """a - b - c, where a and c are too far apart: c stays, for b is dropped and takes nobody with it."""
    rows = [make.picture("a", phash=0b0), make.picture("b", phash=0b1111)]
    rows.append(make.picture("c", phash=0b11111111))
    found = run_stage(near.STAGE, {"ingest": rows, "exact": make.kept("a", "b", "c")}, NEAR_TABLE)
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", None), ("b", "a"), ("c", None)]


def test_blank_pictures_and_pictures_dropped_before_are_left_alone(run_stage, make):
    rows = [make.picture("a"), make.picture("b", flatness=0.99), make.picture("c")]
    decisions = [*make.kept("a", "b"), {"image_id": "c", "keep": False, "reason": "x", "keeper": "a"}]
    found = run_stage(near.STAGE, {"ingest": rows, "exact": decisions}, NEAR_TABLE)
    assert [(row["image_id"], row["keep"]) for row in found] == [("a", True), ("b", True)]


def test_other_pictures_with_a_near_hash_are_left_alone(run_stage, make):
    rows = [make.picture(f"{seed}", descriptor=describe(make.draw(seed))) for seed in range(8)]
    found = run_stage(near.STAGE, {"ingest": rows, "exact": make.kept(*(row["image_id"] for row in rows))}, NEAR_TABLE)
    assert all(row["keep"] and row["variant_group"] is None and row["detail"] is None for row in found)


def recoloured(image: Image.Image) -> Image.Image:
    """The same drawing, but for the colour of a third of it."""
    pixels = np.asarray(image).copy()
    pixels[32:64, 32:64] = 255 - pixels[32:64, 32:64]
    return Image.fromarray(pixels)


def test_variants_are_grouped_and_stay_and_a_setting_caps_them(run_stage, make):
    first, second = make.draw(3), recoloured(make.draw(3))
    descriptors = {"a": first, "b": second, "c": second, "d": make.draw(9)}
    rows = [
        make.picture(name, descriptor=describe(image), width=200 - place, height=200 - place)
        for place, (name, image) in enumerate(descriptors.items())
    ]
    found = run_stage(near.STAGE, {"ingest": rows, "exact": make.kept(*descriptors)}, NEAR_TABLE)
    assert [(row["image_id"], row["keeper"], row["variant_group"], row["variant_rank"]) for row in found] == [
        ("a", None, "a", 0),
        ("b", None, "a", 1),
        ("c", "b", None, None),
        ("d", None, None, None),
    ]
    numbers = json.loads(found[1]["detail"])
    assert numbers["distance"] == 0
    assert numbers["agreement"] > 0.5
    ids = [row["image_id"] for row in found if row["keep"]]
    merged = [dict.fromkeys(MERGED.names) | make.picture(name) | dict.fromkeys(LISTS, ()) for name in ids]
    tables = {"merge": merged, "near": found, "exact": make.kept(*ids)}
    schemas = {"merge": MERGED, **NEAR_TABLE}
    for most, reasons in ((None, [None] * 3), (2, [None] * 3), (1, [None, "variant", None])):
        capped = run_stage(filter_stage.STAGE, tables, schemas, max_variants=most)
        assert [(row["image_id"], row["reason"]) for row in capped] == list(zip("abd", reasons, strict=True))
    merged[0]["rating"] = "explicit"  # What another rule drops does not count.
    capped = run_stage(filter_stage.STAGE, tables, schemas, max_variants=1)
    assert [row["reason"] for row in capped] == ["rating", None, None]
