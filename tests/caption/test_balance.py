"""Weights, against counting by hand."""

import math
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caption.balance import STAGE, WEIGHTS, BalanceSettings
from shared.engine import LocalEngine
from shared.stages import DECISIONS, TAG, Job


def tag(name, category):
    return {"name": name, "category": category, "origin": "source"}


@pytest.fixture
def weigh(tmp_path: Path):
    def start(pictures, dropped=(), table="tags", **options):
        schema = pa.schema([("image_id", pa.string()), ("tags", pa.list_(TAG))])
        tables = {name: tmp_path / name for name in ("filter", table)}
        for folder in (*tables.values(), tmp_path / "out"):
            folder.mkdir(exist_ok=True)
        rows = [{"image_id": f"{n:03}", "tags": tags} for n, tags in enumerate(pictures)]
        decided = [{"image_id": row["image_id"], "keep": n not in dropped} for n, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(rows, schema), tables[table] / "part-0.parquet")
        pq.write_table(pa.Table.from_pylist(decided, DECISIONS), tables["filter"] / "part-0.parquet")
        STAGE.run(
            Job(
                source="",
                settings=BalanceSettings(**options),
                folder=tmp_path / "out",
                tables=tables,
                deciders=("filter",),
                engine=LocalEngine(1),
            )
        )
        found = pq.read_table(tmp_path / "out")
        assert found.schema == WEIGHTS
        return [(int(row["image_id"]), row["weight"]) for row in found.to_pylist()]

    return start


MIKU, RIN = tag("miku", "character"), tag("rin", "character")


@pytest.mark.parametrize("table", ["tags", "merge"])
def test_rare_concepts_weigh_more_up_to_a_limit(weigh, table):
    pictures = [[MIKU, tag("smile", "general")]] * 9 + [[MIKU, RIN]] + [[tag("frog", "general")]] * 6
    found = weigh(pictures, rare=0.25, most=1.9, table=table)
    assert found == [*((n, 1.0) for n in range(9)), (9, 1.9), *((n, 1.0) for n in range(10, 16))]
    assert weigh(pictures, rare=0.25, most=9)[9] == (9, 2.0), "sqrt(1/4 / 1/16)"
    assert weigh(pictures, rare=0.25, most=9, categories=["general"])[0] == (0, 1.0)
    assert {weight for _, weight in weigh(pictures)} == {1.0}, "nothing is rarer than one in a thousand"


def test_only_what_is_kept_counts(weigh):
    pictures = [[MIKU]] * 3 + [[RIN]]
    assert weigh(pictures, dropped=[0, 1], rare=0.5, most=9) == [(2, 1.0), (3, 1.0)]
    assert weigh([], rare=0.5) == []


CATEGORIES = ("character", "copyright", "artist")
TAGS = st.builds(tag, st.sampled_from("abcdef"), st.sampled_from([*CATEGORIES, "general", "meta"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.lists(st.lists(TAGS, max_size=4), min_size=1, max_size=12), st.floats(0.01, 1, exclude_min=True), st.floats(1, 9)
)
def test_weights_are_those_of_the_paper(weigh, pictures, rare, most):
    concepts = [{one["name"] for one in tags if one["category"] in CATEGORIES} for tags in pictures]
    counts = Counter(name for names in concepts for name in names)
    repeat = {name: max(1, math.sqrt(rare / (count / len(pictures)))) for name, count in counts.items()}
    expected = [min(most, max((repeat[name] for name in names), default=1)) for names in concepts]
    assert [weight for _, weight in weigh(pictures, rare=rare, most=most)] == pytest.approx(expected)
