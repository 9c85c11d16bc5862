"""Filters: each with its reason and its numbers."""

import itertools
import json

import pytest

from curate.filter import MINOR_TAGS, STAGE
from curate.merge import MERGED

LIMITS = {
    "min_side": 64,
    "min_pixels": 8000,
    "max_pixels": 40_000,
    "max_aspect": 2,
    "max_border": 0.5,
    "min_sharpness": 10,
}


def judge(run_stage, make, pictures, **settings):
    merged = [
        {"locations": [], "duplicates": [], "source_urls": []}
        | {key: value for key, value in make.picture(f"{n}", **columns).items() if key in MERGED.names}
        for n, columns in enumerate(pictures)
    ]
    tables = {"merge": merged, "exact": make.kept(*(row["image_id"] for row in merged))}
    return run_stage(STAGE, tables, {"merge": MERGED}, **settings)


@pytest.mark.parametrize(
    ("columns", "reason", "detail"),
    [
        ({}, None, None),
        ({"width": 63, "height": 200}, "too_small", {"width": 63, "height": 200}),
        ({"width": 64, "height": 124}, "too_small", {"width": 64, "height": 124}),
        ({"width": 201, "height": 200}, "too_large", {"width": 201, "height": 200}),
        ({"width": 201, "height": 100}, "aspect", {"aspect": 2.01, "width": 201, "height": 100}),
        ({"width": 100, "height": 200}, None, None),
        ({"flatness": 0.99}, "flat", {"flatness": 0.99}),
        ({"border": 0.6}, "border", {"border": 0.6}),
        ({"border": 0.5, "sharpness": 10.0}, None, None),
        ({"sharpness": 9.5}, "blurred", {"sharpness": 9.5}),
        ({"border": 0.6, "sharpness": 9.5, "flatness": 0.99}, "flat", {"flatness": 0.99}),
        ({"frames": 2}, "animated", {"frames": 2}),
        ({"rating": "questionable"}, "rating", {"rating": "questionable"}),
        ({"rating": "sensitive"}, None, None),
    ],
)
def test_reasons(columns, reason, detail, run_stage, make):
    (found,) = judge(run_stage, make, [columns], **LIMITS)
    assert (found["keep"], found["reason"], found["keeper"]) == (reason is None, reason, None)
    assert (found["detail"] and json.loads(found["detail"])) == detail


def test_settings_open_what_they_close(run_stage, make):
    pictures = [{"frames": 9}, {"rating": "explicit"}, {}, {"flatness": 1.0}]
    settings = {"keep_animated": True, "ratings": ("explicit", "general"), "max_flatness": None}
    found = judge(run_stage, make, pictures, **settings)
    assert [row["reason"] for row in found] == ["rating", None, "rating", "rating"]


RATINGS = ("general", "sensitive", "questionable", "explicit", "unknown")


@pytest.mark.parametrize("allowed", [c for n in (1, 3, 5) for c in itertools.combinations(RATINGS, n)])
def test_safety_has_no_off_switch(allowed, run_stage, make):
    pictures = [
        {"tags": make.tags("1girl", "loli"), "rating": None if rating == "unknown" else rating} for rating in RATINGS
    ]
    settings = {"ratings": allowed, "keep_animated": True, "max_flatness": None}
    found = judge(run_stage, make, pictures, **settings)
    assert [row["reason"] for row in found[1:]] == ["safety"] * 4
    assert found[0]["keep"] == ("general" in allowed)


def test_every_tag_of_the_safety_rule_counts_whatever_its_category(run_stage, make):
    pictures = [{"tags": make.tags("smile", tag, category="meta")} for tag in sorted(MINOR_TAGS)]
    found = judge(run_stage, make, pictures)
    assert {row["reason"] for row in found} == {"safety"}
    assert {"loli", "shota", "lolicon", "shotacon", "toddlercon", "child", "toddler", "baby"} <= MINOR_TAGS


def test_no_setting_speaks_of_safety():
    assert set(STAGE.settings.model_fields) == {
        "min_side",
        "min_pixels",
        "max_pixels",
        "max_aspect",
        "max_flatness",
        "max_border",
        "min_sharpness",
        "keep_animated",
        "max_variants",
        "ratings",
        "scores",
    }
