"""The stage `review`: the safety rule, ratings and text, with what models have seen."""

import json

import pytest

from caption.normalise import NORMAL
from caption.ocr import OCR
from curate.merge import MERGED
from curate.review import STAGE, check_pipeline
from shared.errors import UserError
from shared.pipelines import load

PLAIN = {"locations": [], "duplicates": [], "source_urls": [], "tags": []}


@pytest.fixture
def review(run_stage, make):
    """Decisions about one picture, given what the tables say of it."""

    def judge(merge=None, tags=None, ocr=None, **settings):
        row = {key: value for key, value in make.picture("a").items() if key in MERGED.names} | PLAIN | (merge or {})
        tables, schemas = {"merge": [row], "filter": make.kept("a")}, {"merge": MERGED, "tags": NORMAL, "ocr": OCR}
        if tags is not None:
            tables["tags"] = [{"image_id": "a", "tags": [], "implied": [], "removed": []} | tags]
        if ocr is not None:
            tables["ocr"] = [{"image_id": "a"} | ocr]
        (found,) = run_stage(STAGE, tables, schemas, **settings)
        return found["reason"], json.loads(found["detail"] or "null")

    return judge


def tagger(make, *names):
    return [tag | {"origin": "tagger"} for tag in make.tags(*names)]


@pytest.mark.parametrize("rating", ["general", "sensitive", "questionable", "explicit", None])
def test_tags_of_the_tagger_count_for_the_safety_rule(review, make, rating):
    everything = ("general", "sensitive", "questionable", "explicit", "unknown")
    tags = {"tags": tagger(make, "1girl", "loli"), "rating": rating}
    expected = (None, None) if rating == "general" else ("safety", {"rating": rating or "unknown", "tags": ["loli"]})
    assert review(tags=tags, ratings=everything) == expected


def test_tags_of_the_source_count_even_where_they_are_not_among_the_normal_ones(review, make):
    found = review({"tags": make.tags("shota"), "rating": "sensitive"}, tags={"tags": make.tags("child")})
    assert found == ("safety", {"rating": "sensitive", "tags": ["child", "shota"]})


def test_without_the_stage_tags_the_source_s_count(review, make):
    assert review({"tags": make.tags("loli")})[0] == "safety"
    assert review({"tags": make.tags("1girl"), "rating": "explicit"})[0] == "rating"


def test_the_rating_is_that_of_the_stage_tags(review):
    assert review(tags={"rating": "explicit"}) == ("rating", {"rating": "explicit"})
    assert review(tags={"rating": "explicit"}, ratings=["explicit"]) == (None, None)
    assert review(tags={"rating": None}) == (None, None)
    assert review(tags={"rating": None}, ratings=["general"]) == ("rating", {"rating": "unknown"})


def test_text_is_a_reason_where_it_is_asked_for(review):
    line = {"text": "pixiv.net", "confidence": 0.9, "box": [0.0] * 8, "script": "latin", "watermark": True}
    found = {"texts": [line, line | {"text": "Hello", "watermark": False}], "text_area": 0.5, "watermark": True}
    assert review(ocr=found) == (None, None)
    assert review(ocr=found, max_text_area=0.5) == (None, None)
    assert review(ocr=found, max_text_area=0.25) == ("text", {"text_area": 0.5})
    assert review(ocr=found, keep_watermarked=False) == ("watermark", {"texts": ["pixiv.net"]})
    assert review(ocr={"error": "unreadable"}, max_text_area=0.1, keep_watermarked=False) == (None, None)


def test_the_order_of_stages_is_checked_before_any_work(tmp_path):
    def check(*stages):
        lines = "".join(f"    {stage}\n" for stage in ("curate.merge: {}", "curate.filter: {}", *stages))
        (tmp_path / "pipelines.yaml").write_text("p:\n  stages:\n" + lines)
        check_pipeline(load(tmp_path / "pipelines.yaml"))

    check()
    check("caption.tags: {}", "curate.review: {}")
    check("caption.ocr: {}", "curate.review: {max_text_area: 0.1}")
    for stages in ["caption.tags: {}"], ["curate.review: {}", "caption.tags: {}"]:
        with pytest.raises(UserError, match=r"put curate\.review behind it"):
            check(*stages)
    for stages in (
        ["curate.review: {max_text_area: 0.1}"],
        ["curate.review: {keep_watermarked: false}", "caption.ocr: {}"],
    ):
        with pytest.raises(UserError, match=r"caption\.ocr before it"):
            check(*stages)


def test_the_table_of_decisions(run_stage, make):
    row = {key: value for key, value in make.picture("a").items() if key in MERGED.names} | PLAIN
    (found,) = run_stage(STAGE, {"merge": [row], "filter": make.kept("a")}, {"merge": MERGED})
    assert found == {"image_id": "a", "keep": True, "reason": None, "detail": None, "keeper": None}
