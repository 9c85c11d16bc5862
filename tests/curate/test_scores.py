"""Filter by score: percentiles against a brute force, and decisions that the tables alone explain."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.aesthetic import STAGE as AESTHETIC_STAGE
from curate.filter import STAGE, FilterSettings, check_pipeline
from curate.merge import MERGED
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.pipelines import Pipeline, StageSpec
from shared.stages import Job

ODD = 'odd name\'s "head"'
SCORES = pa.struct([("laion_v2", pa.float32()), ("anime", pa.float32()), (ODD, pa.float32())])
AESTHETIC = pa.schema([pa.field("image_id", pa.string(), nullable=False), pa.field("scores", SCORES)])
SMALL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(n, laion_v2=None, anime=None, rating="general", year=2020, **columns):
    """A row of `merge` and one of `aesthetic`, in one."""
    date = None if year is None else datetime(year, 12, 31, 23, 59, tzinfo=UTC)
    plain = {"image_id": f"{n:04}", "locations": [], "duplicates": [], "source_urls": [], "tags": []}
    shape = {"width": 100, "height": 100, "frames": 1, "flatness": 0.5}
    scores = {"laion_v2": laion_v2, "anime": anime, ODD: laion_v2}
    return plain | shape | {"rating": rating, "created_at": date, "scores": scores} | columns


def tables_of(pictures):
    """The tables that the filter reads; a picture whose scores are None is not in `aesthetic` at all."""
    merged = [{key: value for key, value in row.items() if key != "scores"} for row in pictures]
    scored = [{"image_id": row["image_id"], "scores": row["scores"]} for row in pictures if row["scores"]]
    kept = [{"image_id": row["image_id"], "keep": True} for row in pictures]
    return {"merge": merged, "aesthetic": scored, "exact": kept}


@pytest.fixture
def judge(run_stage):
    """Rows of `filter` by number of picture, `detail` read."""

    def start(pictures, **options):
        rows = run_stage(STAGE, tables_of(pictures), {"merge": MERGED, "aesthetic": AESTHETIC}, **options)
        assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in pictures)
        return {int(row["image_id"]): row | {"detail": json.loads(row["detail"] or "null")} for row in rows}

    return start


def percentile(value, values):
    return float(Fraction(sum(2 * (other < value) + (other == value) for other in values), 2 * len(values)))


def group_of(row, within):
    made = row["created_at"]
    known = {"rating": row["rating"] or "unknown", "year": made and made.year}
    return {name: known[name] for name in within}


def percentiles(pictures, of, within):
    """The percentile of every picture by the sum of its weighted percentiles, one comparison after the other."""
    groups = defaultdict(list)
    for row in pictures:
        groups[str(group_of(row, within))].append(row)
    found = {}
    for group in groups.values():
        mixed = {
            row["image_id"]: sum(
                weight * percentile(row["scores"][name], [other["scores"][name] for other in group])
                for name, weight in sorted(of.items())
            )
            for row in group
        }
        found |= {key: percentile(value, mixed.values()) for key, value in mixed.items()}
    return found


def brute(pictures, conditions, ratings, min_side):
    """The verdict about every picture: reason, and the percentile or value that a score's condition is about."""
    names = sorted({name for condition in conditions for name in condition["of"]})
    found, left = {}, []
    for row in pictures:
        missing = [name for name in names if (row["scores"] or {}).get(name) is None]
        if (row["rating"] or "unknown") not in ratings:
            found[int(row["image_id"])] = ("rating", None)
        elif row["width"] < min_side:
            found[int(row["image_id"])] = ("too_small", None)
        elif missing:
            found[int(row["image_id"])] = ("unscored", missing)
        else:
            left.append(row)
    for row in left:
        verdict = (None, None)
        for condition in conditions:
            if "min" in condition:
                value = sum(weight * row["scores"][name] for name, weight in sorted(condition["of"].items()))
                failed = value < condition["min"]
            else:
                value = percentiles(left, condition["of"], condition.get("within", ()))[row["image_id"]]
                failed = value < condition["min_percentile"]
            if failed:
                verdict = ("aesthetic", value)
                break
        found[int(row["image_id"])] = verdict
    return found


FLOATS = st.sampled_from([0.0, -0.0, 0.5, 1.0, 5.3, 1e9]) | st.floats(-3, 3, width=32)
SCORE = st.none() | FLOATS.map(lambda value: float(np.float32(value)))
CORPORA = st.lists(
    st.tuples(
        SCORE,
        SCORE,
        st.sampled_from(["general", "sensitive", "explicit", None]),
        st.sampled_from([None, 2019, 2020]),
        st.sampled_from([100, 100, 100, 50]),
    ),
    max_size=30,
)
OF = st.sampled_from(
    [{"laion_v2": 1.0}, {"anime": 2.0}, {ODD: 1.0}, {"laion_v2": 0.5, "anime": 0.5}, {"anime": 0.1, "laion_v2": 0.7}]
)
LEAST = st.builds(lambda of, least: {"of": of, "min": least}, OF, st.sampled_from([0.0, 0.5, 1.5]))
PLACE = st.builds(
    lambda of, share, within: {"of": of, "min_percentile": share, "within": within},
    OF,
    st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from([(), ("rating",), ("year",), ("rating", "year")]),
)


@given(CORPORA, st.lists(PLACE | LEAST, min_size=1, max_size=3), st.randoms())
@SMALL
def test_verdicts_are_those_of_a_brute_force_in_any_order(judge, corpus, conditions, random):
    pictures = [picture(n, *row, width=width) for n, (*row, width) in enumerate(corpus)]
    limits = {"ratings": ("general", "sensitive", "unknown"), "min_side": 64}
    expected = brute(pictures, conditions, **limits)
    random.shuffle(pictures)
    found = judge(pictures, scores=conditions, **limits)
    assert {n: row["reason"] for n, row in found.items()} == {n: reason for n, (reason, _) in expected.items()}
    for n, (reason, value) in expected.items():
        detail = found[n]["detail"]
        assert found[n]["keep"] == (detail is None) == (reason is None)
        if reason == "unscored":
            assert detail == {"missing": value}
        if reason == "aesthetic":
            assert detail.get("percentile", detail.get("value")) == value


@given(CORPORA, PLACE)
@SMALL
def test_a_higher_score_never_falls_where_a_lower_one_stays(judge, corpus, condition):
    (name, *_) = condition["of"]
    pictures = [picture(n, *row) for n, (*row, _) in enumerate(corpus)]
    found = judge(pictures, scores=[condition | {"of": name}], ratings=("general", "sensitive", "explicit", "unknown"))
    groups = defaultdict(list)
    for row in pictures:
        verdict = found[int(row["image_id"])]
        if verdict["reason"] != "unscored":
            groups[str(group_of(row, condition["within"]))].append((row["scores"][name], verdict["keep"]))
    for group in groups.values():
        kept = [score for score, keep in group if keep]
        dropped = [score for score, keep in group if not keep]
        assert not kept or not dropped or max(dropped) < min(kept)
        if len({score for score, _ in group}) == len(group):  # Without ties the share that falls is the one asked for.
            assert abs(len(dropped) - condition["min_percentile"] * len(group)) <= 0.5


@given(CORPORA, st.lists(PLACE | LEAST, min_size=2, max_size=3), st.randoms())
@settings(SMALL, max_examples=15)
def test_the_order_of_conditions_decides_about_the_detail_alone(judge, corpus, conditions, random):
    pictures = [picture(n, *row) for n, (*row, _) in enumerate(corpus)]
    expected = {n: row["reason"] for n, row in judge(pictures, scores=conditions).items()}
    random.shuffle(conditions)
    assert {n: row["reason"] for n, row in judge(pictures, scores=conditions).items()} == expected


def test_numbers_are_in_the_detail(judge):
    pictures = [
        picture(0, 4.5, 1.0, year=None),
        picture(1, 5.5, 0.25, year=None),
        picture(2, 5.5, 0.5, year=None),
        picture(3, 6.0, 0.125),
        picture(4, 7.0),
        picture(5, 7.0, 3.0, scores=None),
    ]
    mix = {"of": {"laion_v2": 1, "anime": 3}, "min_percentile": 0.3, "within": ["rating", "year"]}
    found = judge(pictures, scores=[{"of": "laion_v2", "min": 5}, mix])
    assert {n: (row["reason"], row["detail"]) for n, row in found.items()} == {
        0: ("aesthetic", {"scores": {"laion_v2": 4.5}, "value": 4.5, "min": 5.0}),
        1: (
            "aesthetic",
            {
                "scores": {"anime": 0.25, "laion_v2": 5.5},
                "percentile": 1 / 6,
                "min_percentile": 0.3,
                "within": {"rating": "general", "year": None},
                "of": 3,
            },
        ),
        2: (None, None),
        3: (None, None),  # Alone in its group: 0.5
        4: ("unscored", {"missing": ["anime"]}),
        5: ("unscored", {"missing": ["anime", "laion_v2"]}),
    }


def test_a_year_ends_with_utc(judge):
    """23:59 of the last day of December, wherever this machine stands: see `picture`."""
    pictures = [picture(0, 1.0, year=2019), picture(1, 2.0, year=2020)]
    found = judge(pictures, scores=[{"of": "laion_v2", "min_percentile": 0.6, "within": ["year"]}])
    assert [row["detail"]["within"] for row in found.values()] == [{"year": 2019}, {"year": 2020}]


@pytest.mark.parametrize("rating", ["sensitive", "questionable", "explicit", None])
def test_safety_comes_before_scores(rating, judge, make):
    pictures = [picture(n, 9.0, rating=rating) for n in range(3)]
    pictures[1] |= {"tags": make.tags("loli"), "scores": None}
    conditions = [{"of": "laion_v2", "min_percentile": 0.0}, {"of": "laion_v2", "min": 0}]
    ratings = ("general", "sensitive", "questionable", "explicit", "unknown")
    found = judge(pictures, scores=conditions, ratings=ratings)
    assert [row["reason"] for row in found.values()] == [None, "safety", None]


def corpus_of(count):
    random = np.random.default_rng(0)
    for n in range(count):
        laion, anime = np.round(random.normal(size=2), 1).astype(np.float32).tolist()
        rating = random.choice(["general", "sensitive", "explicit"])
        yield picture(n, laion, None if n % 7 == 0 else anime, rating, 2018 + n % 3, width=50 + n % 9 * 10)


MIXED = {"of": {"laion_v2": 0.5, "anime": 0.5}, "min_percentile": 0.4, "within": ["rating", "year"]}
STRICT = {"scores": [MIXED, {"of": "laion_v2", "min": -0.5}], "min_side": 60, "max_variants": 1}


def filtered(write_tables, pictures, folder: Path, parts: int) -> Path:
    """The table of a filter with variants, whose input lies in so many parts."""
    near = pa.schema([("image_id", pa.string()), ("variant_group", pa.string()), ("variant_rank", pa.int32())])
    variants = [{"image_id": f"{n:04}", "variant_group": f"{n - n % 2:04}", "variant_rank": n % 2} for n in range(300)]
    schemas = {"merge": MERGED, "aesthetic": AESTHETIC, "near": near}
    tables = write_tables(tables_of(pictures) | {"near": variants}, schemas)
    for table in tables.values():
        rows = pq.read_table(table)
        bounds = [len(rows) * part // parts for part in range(parts + 1)]
        for part, (start, stop) in enumerate(pairwise(bounds)):
            pq.write_table(rows.slice(start, stop - start), table / f"part-{part:05}.parquet")
    folder.mkdir()
    options = FilterSettings(**STRICT)
    STAGE.run(
        Job(source="", settings=options, folder=folder, tables=tables, deciders=("exact",), engine=LocalEngine(1))
    )
    return folder


def test_parts_and_order_of_the_tables_do_not_matter(write_tables, tmp_path):
    pictures = list(corpus_of(500))
    one = filtered(write_tables, pictures, tmp_path / "one", 1)
    many = filtered(write_tables, pictures[::-1], tmp_path / "many", 7)
    assert (one / "part-00000.parquet").read_bytes() == (many / "part-00000.parquet").read_bytes()


def test_the_tables_alone_explain_every_verdict(write_tables, tmp_path):
    """Who is compared with whom, and why a picture fell, follows from the rows of `merge`, `aesthetic` and `filter`."""
    verdicts = pq.read_table(filtered(write_tables, list(corpus_of(500)), tmp_path / "found", 1)).to_pylist()
    scores = {row["image_id"]: row["scores"] for row in pq.read_table(tmp_path / "aesthetic").to_pylist()}
    merged = {row["image_id"]: row for row in pq.read_table(tmp_path / "merge").to_pylist()}
    ranked = {"aesthetic", "variant", None}
    peers = [
        merged[row["image_id"]] | {"scores": scores[row["image_id"]]} for row in verdicts if row["reason"] in ranked
    ]
    places = percentiles(peers, MIXED["of"], MIXED["within"])
    seen = set()
    for row in verdicts:
        own, given, detail = merged[row["image_id"]], scores[row["image_id"]], json.loads(row["detail"] or "null")
        kind = row["reason"] if row["reason"] != "aesthetic" else "value" if "value" in detail else "percentile"
        seen.add(kind)
        match kind:
            case None:
                assert detail is None
            case "rating":
                assert detail == {"rating": own["rating"]} == {"rating": "explicit"}
            case "too_small":
                assert detail == {"width": own["width"], "height": 100}
                assert own["width"] < 60
            case "unscored":
                assert detail == {"missing": [name for name in ("anime", "laion_v2") if given[name] is None]}
            case "percentile":
                group = group_of(own, MIXED["within"])
                assert detail == {
                    "scores": {name: given[name] for name in ("anime", "laion_v2")},
                    "percentile": places[row["image_id"]],
                    "min_percentile": 0.4,
                    "within": group,
                    "of": sum(group_of(peer, MIXED["within"]) == group for peer in peers),
                }
                assert detail["percentile"] < 0.4
            case "value":
                assert detail == {"scores": {"laion_v2": given["laion_v2"]}, "value": given["laion_v2"], "min": -0.5}
                assert detail["value"] < -0.5
                assert places[row["image_id"]] >= 0.4
            case "variant":
                assert detail == {"place": 2}
        if row["reason"] in (None, "variant"):
            assert places[row["image_id"]] >= 0.4
            assert given["laion_v2"] >= -0.5
    assert seen == {None, "rating", "too_small", "unscored", "percentile", "value", "variant"}


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"of": "laion_v2"}, "one of min and min_percentile"),
        ({"of": "laion_v2", "min": 5, "min_percentile": 0.5}, "one of min and min_percentile"),
        ({"of": "laion_v2", "min": 5, "within": ["year"]}, "within is for min_percentile"),
        ({"of": "laion_v2", "min_percentile": 30}, "less than or equal to 1"),
        ({"of": "laion_v2", "min_percentile": 0.3, "within": ["artist"]}, "'rating' or 'year'"),
        ({"of": {"laion_v2": 0}, "min": 5}, "greater than 0"),
        ({"of": {}, "min": 5}, "at least 1 item"),
    ],
)
def test_a_condition_that_means_nothing_is_an_error(condition, words):
    with pytest.raises(ValidationError, match=words):
        FilterSettings(scores=[condition])


def test_weights_in_another_order_are_the_same_setting():
    one = FilterSettings(scores=[{"of": {"a": 1, "b": 2}, "min": 0}])
    other = FilterSettings(scores=[{"of": {"b": 2, "a": 1}, "min": 0}])
    assert one.model_dump_json() == other.model_dump_json()
    assert FilterSettings(scores=[{"of": "a", "min": 0}]) == FilterSettings(scores=[{"of": {"a": 1}, "min": 0}])


def test_an_unknown_score_is_named(judge, run_stage):
    with pytest.raises(UserError, match="no score 'laion_v3'; there are: laion_v2, anime, odd"):
        judge([picture(0, 1.0)], scores=[{"of": "laion_v3", "min": 5}])
    tables = tables_of([picture(0, 1.0)])
    del tables["aesthetic"]
    with pytest.raises(UserError, match=r"needs the stage curate\.aesthetic before"):
        run_stage(STAGE, tables, {"merge": MERGED}, scores=[{"of": "laion_v2", "min": 5}])


def pipeline_of(*stages):
    specs = tuple(StageSpec(module, stage, stage.settings(**options)) for module, stage, options in stages)
    return Pipeline("test", specs, {})


def test_a_pipeline_is_checked_before_it_runs():
    heads = ("curate.aesthetic", AESTHETIC_STAGE, {"heads": {"laion_v2": "a.pth"}, "classes": {"anime": None}})
    known = ("curate.filter", STAGE, {"scores": [{"of": {"laion_v2": 1, "anime": 1}, "min": 5}]})
    unknown = ("curate.filter", STAGE, {"scores": [{"of": "v2", "min": 5}]})
    check_pipeline(pipeline_of(heads, known))
    check_pipeline(pipeline_of(("curate.filter", STAGE, {})))
    check_pipeline(pipeline_of(("mine.aesthetic", STAGE, {}), unknown))
    with pytest.raises(UserError, match="no score 'v2'; there are: anime, laion_v2"):
        check_pipeline(pipeline_of(heads, unknown))
    for without in ([known], [known, heads]):
        with pytest.raises(UserError, match=r"needs the stage curate\.aesthetic before"):
            check_pipeline(pipeline_of(*without))
