"""Quality tags and year tags."""

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.merge import MERGED
from curate.quality import DAY, LEVELS, STAGE, YEARS, QualitySettings, percentiles
from shared.errors import UserError
from shared.pipelines import load

START = datetime(2015, 1, 1, tzinfo=UTC)
WORST_TO_BEST = list(LEVELS["illustrious"])

AESTHETIC = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("scores", pa.struct([("laion_v2", pa.float32()), ('odd name\'s "head"', pa.float32())])),
    ]
)


def picture(n, day=0, score=None, rating="general", **columns):
    """A row of `merge`; `day` counts from START."""
    plain = {
        "image_id": f"{n:04}",
        "locations": [],
        "duplicates": [],
        "source_urls": [],
        "created_at": None if day is None else START + timedelta(days=day),
        "score": score,
        "rating": rating,
    }
    return plain | columns


@pytest.fixture
def tag(run_stage, make):
    """Rows of `quality` by number of picture."""

    def start(pictures, aesthetic=None, dropped=(), **options):
        verdicts = [{"image_id": row["image_id"], "keep": row["image_id"] not in dropped} for row in pictures]
        tables = {"merge": pictures, "filter": verdicts}
        if aesthetic is not None:
            tables["aesthetic"] = aesthetic
        rows = run_stage(STAGE, tables, {"merge": MERGED, "aesthetic": AESTHETIC}, **({"settled": 0} | options))
        assert [row["image_id"] for row in rows] == sorted({row["image_id"] for row in pictures} - set(dropped))
        return {int(row["image_id"]): row for row in rows}

    return start


def percentile(score, scores):
    """The share of `scores` below, and half of those that are equal."""
    return float(Fraction(100 * sum((other < score) + Fraction(other == score, 2) for other in scores), len(scores)))


def brute(pictures, window):
    """The percentile of every picture, one comparison after the other."""

    def near(one, other):
        if one["rating"] != other["rating"] or (one["created_at"] is None) != (other["created_at"] is None):
            return False
        return one["created_at"] is None or abs(one["created_at"] - other["created_at"]) <= timedelta(days=window)

    scored = [row for row in pictures if row["score"] is not None]
    return {
        int(row["image_id"]): percentile(row["score"], [other["score"] for other in scored if near(row, other)])
        for row in scored
    }


CORPORA = st.lists(
    st.tuples(
        st.none() | st.integers(0, 40),
        st.none() | st.sampled_from([-1.5, 0.0, 1.0, 2.0, 1e9]) | st.floats(-5, 5),
        st.sampled_from(["general", "sensitive", "explicit", None]),
    ),
    max_size=40,
)


@given(CORPORA, st.integers(1, 45), st.randoms())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_percentiles_are_those_of_a_brute_force_in_any_order(tag, corpus, window, random):
    pictures = [picture(n, *row) for n, row in enumerate(corpus)]
    expected = brute(pictures, window)
    random.shuffle(pictures)
    found = tag(pictures, window=window)
    assert {n: row["quality_percentile"] for n, row in found.items() if n in expected} == expected
    for n, row in found.items():
        place = bisect_left([8, 20, 60, 82, 92, 100], expected.get(n, 0))
        assert row["quality_tag"] == (WORST_TO_BEST[place] if n in expected else None)
        assert (row["quality_percentile"] is None) == (n not in expected)


@given(CORPORA)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_higher_score_in_the_same_window_never_gets_a_lower_tag(tag, corpus):
    pictures = [picture(n, *row) for n, row in enumerate(corpus)]
    rows = tag(pictures, window=40)  # holds all of them
    groups = {}
    for row in pictures:
        if row["score"] is not None:
            groups.setdefault((row["rating"], row["created_at"] is None), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["score"])
        ranks = [WORST_TO_BEST.index(rows[int(row["image_id"])]["quality_tag"]) for row in group]
        assert ranks == sorted(ranks)


def test_percentiles_of_many_pictures_are_those_of_duckdb():
    random = np.random.default_rng(0)
    times = random.integers(0, 400 * DAY, 20_000)
    scores = np.round(random.normal(size=20_000), 2)
    found = percentiles(scores, times, 30 * DAY)
    corpus = pa.table({"place": range(20_000), "time": times, "score": scores})  # noqa: F841
    expected = duckdb.sql(f"""
        SELECT 50.0::DOUBLE * (
            count(*) OVER near + rank(ORDER BY score) OVER near - rank(ORDER BY score DESC) OVER near
        ) / count(*) OVER near
        FROM corpus WINDOW near AS (ORDER BY time RANGE BETWEEN {30 * DAY} PRECEDING AND {30 * DAY} FOLLOWING)
        ORDER BY place
    """)
    assert found.tolist() == [row[0] for row in expected.fetchall()]


@pytest.mark.parametrize("recipe", LEVELS)
def test_shares_of_a_large_corpus_are_those_of_the_recipe(recipe, tag):
    order = np.random.default_rng(0).permutation(2000)
    rows = tag([picture(n, n / 20, float(order[n])) for n in range(2000)], levels=recipe)
    shares = Counter(row["quality_tag"] for row in rows.values())
    bounds = [0, *LEVELS[recipe].values()]
    expected = {name: 20 * (high - low) for name, low, high in zip(LEVELS[recipe], bounds, bounds[1:], strict=False)}
    assert shares == expected


def test_scores_may_drift(tag):
    """A picture is as good as its rank among its contemporaries, though later scores are ten times as high."""
    pictures = [picture(n, 1000 * (n // 100), (n % 100) * 10.0 ** (n // 100)) for n in range(300)]
    rows = tag(pictures)
    assert [rows[n]["quality_percentile"] for n in range(300)] == [n % 100 + 0.5 for n in range(300)]


def test_whom_a_picture_is_compared_with(tag):
    day = [picture(0, 100, 5.0), picture(1, 110, 4.0), picture(2, 110.001, 1.0), picture(3, 100, 1.0, "explicit")]
    rows = tag(day, window=10)
    assert [rows[n]["quality_percentile"] for n in range(4)] == [75, pytest.approx(50), 25, 50]
    rows = tag([*day, picture(4, 100, 9.0), picture(5, None, 1.0), picture(6, None, 2.0)], window=10, dropped={"0004"})
    assert [rows[n]["quality_percentile"] for n in (0, 5, 6)] == [75, 25, 75]
    first_day = picture(1, score=1.0, created_at=datetime(1970, 1, 1, tzinfo=UTC))
    assert tag([picture(0, None, 2.0), first_day])[0]["quality_percentile"] == 50


def test_unsettled_scores_get_none_and_count_for_nothing(tag):
    pictures = [picture(n, n, float(n)) for n in range(101)] + [picture(200, None, 7.0)]
    rows = tag(pictures, settled=30)
    assert [n for n, row in rows.items() if row["quality_tag"] is None] == list(range(71, 101))
    assert rows[70]["quality_percentile"] == 100 * 70.5 / 71
    assert all(row["year_tag"] for n, row in rows.items() if n <= 100)
    rows = tag(pictures, settled=30, dropped={"0100"})  # It is the newest one all the same.
    assert [n for n, row in rows.items() if row["quality_tag"] is None] == list(range(71, 100))


def scored(n, score, head="laion_v2"):
    return {"image_id": f"{n:04}", "scores": {head: score}}


def test_an_aesthetic_score_needs_not_settle(tag):
    pictures = [picture(n, n, 1.0) for n in range(4)]
    heads = [scored(0, 6.5), scored(1, 5.0), {"image_id": "0002", "scores": None}]
    rows = tag(pictures, heads, of={"laion_v2": 1}, settled=30)
    assert [rows[n]["quality_percentile"] for n in range(4)] == [75, 25, None, None]
    odd = 'odd name\'s "head"'
    assert tag(pictures, [scored(0, 1.0, odd)], of={odd: 2})[0]["quality_percentile"] == 50


def test_a_mix_is_the_weighted_mean_of_percentiles_ranked_again(tag):
    random = np.random.default_rng(1)
    score, head = random.integers(0, 20, 60).tolist(), random.integers(0, 6, 60).tolist()
    pictures = [picture(n, n / 10, float(score[n])) for n in range(60)]
    pictures.append(picture(60, 1, 9.0))  # Without the other score it gets nothing, and counts for nothing.
    rows = tag(pictures, [scored(n, head[n]) for n in range(60)], of={"score": 0.75, "laion_v2": 0.25})
    means = [0.25 * percentile(head[n], head) + 0.75 * percentile(score[n], score) for n in range(60)]
    assert [rows[n]["quality_percentile"] for n in range(60)] == [percentile(mean, means) for mean in means]
    assert rows[60]["quality_percentile"] is None
    again = tag(pictures, [scored(n, head[n]) for n in range(60)], of={"laion_v2": 0.25, "score": 0.75})
    assert again == rows


def test_favorites(tag):
    pictures = [picture(0, favorites=3), picture(1, favorites=2), picture(2, score=1.0)]
    rows = tag(pictures, of={"favorites": 1})
    assert [rows[n]["quality_percentile"] for n in range(3)] == [75, 25, None]


@pytest.mark.parametrize("aesthetic", [None, []])
def test_an_unknown_score(aesthetic, tag):
    with pytest.raises(UserError, match=r"quality.of: no score 'beauty'; there are: score, favorites"):
        tag([picture(0)], aesthetic, of={"score": 1, "beauty": 1})


def test_year_tags(tag, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # Years are those of UTC, 14 hours behind.
    times = [datetime(year, 12, 31, 23, 59, tzinfo=UTC) for year in range(2005, 2026)]
    pictures = [picture(n, created_at=time) for n, time in enumerate(times)]
    rows = tag([*pictures, picture(99, None)])
    expected = 13 * ["oldest"] + 2 * ["old"] + ["modern"] + 2 * ["recent"] + 3 * ["newest"]
    assert [rows[n]["year_tag"] for n in range(21)] == expected
    assert rows[99]["year_tag"] is None
    assert tag([picture(0, 365 * 3)], years={"late": 2020, "early": 2016})[0]["year_tag"] == "late"


def test_recipes_are_resolved_and_bounds_in_order():
    assert QualitySettings(levels="noobai").levels == LEVELS["noobai"]
    assert QualitySettings().years == YEARS["illustrious"]
    assert list(QualitySettings(of={"score": 1, "laion_v2": 1}).of) == ["laion_v2", "score"]
    levels = QualitySettings(levels={"good": 100, "bad": 50}).levels
    assert list(levels) == ["bad", "good"]
    assert QualitySettings.model_validate(QualitySettings().model_dump(mode="json")) == QualitySettings()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels=best", "levels = 'best': .*or a recipe: illustrious, noobai, animagine"),
        ("levels={bad: 50, good: 90}", "the last level must end at 100"),
        ("levels={bad: 100, good: 100}", "each another"),
        ("years={}", "give names with upper bounds"),
        ("of={}", "at least 1 item"),
        ("of.score=0", r"of.score = 0: .*greater than 0"),
    ],
)
def test_wrong_settings(override, message, tmp_path):
    (tmp_path / "p.yaml").write_text("test:\n  stages:\n    curate.quality: {}\n")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "p.yaml", "test", [f"quality.{override}"])


def test_in_a_run_tags_come_into_the_dataset_and_the_captions(corpus, curate, pipelines):
    stages = pipelines.read_text()
    pipelines.write_text(stages.replace("    caption.compose", "    curate.quality: {}\n    caption.compose"))
    (corpus / "00.json").write_text(
        '{"tag_string": "smile 1girl", "artist": "wokada", "rating": "g", "score": 3, "created_at": "2019-05-05"}'
    )
    (corpus / "01.json").write_text('{"tag_string": "hat", "rating": "g", "created_at": "2021-05-05"}')
    kept = curate(corpus).kept()
    first = kept["00.png"]
    assert (first["quality_tag"], first["quality_percentile"], first["year_tag"]) == ("average quality", 50, "old")
    assert first["captions"] == [
        {"variant": "tags", "text": "1girl, general, smile, long hair, wokada, average quality, old"}
    ]
    assert kept["01.png"]["captions"] == [{"variant": "tags", "text": "general, hat, recent"}]
    assert kept["02.png"]["captions"] == []
    assert pq.read_schema(next((corpus.parent / "work" / "curated").iterdir())).names.count("quality") == 1
