"""Captions that are longer than the encoder reads, cut with a real tokenizer."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from caption.compose import STAGE, ComposeSettings
from caption.limit import Parts, counter, shorten
from caption.write import make_tag, make_text
from demo.tiny_lumina import tokenizer as tiny
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import DECISIONS, TAG, Job

PREFIX = "You are an assistant. "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny().save_pretrained(folder)
    return folder


def tags(*pairs):
    found = [make_tag(*pair) for pair in pairs]
    return sorted([tag for tag in found if tag], key=lambda tag: tag.rank)


MANY = (("1girl", "general"), ("miku", "character"), ("wokada", "artist"), ("general", "rating"), ("newest", "year"))
GENERAL = tuple((f"tag{number}", "general") for number in range(30))


def cut(parts: Parts, limit: int, tokenizer):
    count = counter(str(tokenizer), PREFIX)
    return shorten(parts, count([parts.text()])[0], limit, count)


def test_tokens_are_those_of_the_encoder(tokenizer):
    reference = AutoTokenizer.from_pretrained(tokenizer)
    texts = ["1girl, solo", "", "zzz"]
    assert counter(str(tokenizer), PREFIX)(texts) == [len(reference(PREFIX + text)["input_ids"]) for text in texts]
    assert reference("")["input_ids"], "the beginning of a sequence is a token"


def test_the_last_general_tags_go_first(tokenizer):
    one = cut(Parts("x", "illustrious", tags(*MANY, *GENERAL), ""), 100, tokenizer)
    stay = one.text.split(", ")
    assert one.left <= 100 < one.tokens
    assert stay[:3] == ["1girl", "miku", "general"]
    assert stay[-2:] == ["wokada", "newest"]
    assert stay[3:-2] == [f"tag{number}" for number in range(len(stay) - 5)], "whole tags, in order"
    assert one.dropped == [f"tag{number}" for number in range(29, len(stay) - 6, -1)]


def test_the_least_number_goes(tokenizer):
    parts, count = Parts("x", "illustrious", tags(*MANY, *GENERAL), ""), counter(str(tokenizer), PREFIX)
    (exact,) = count([Parts("x", "illustrious", tags(*MANY, *GENERAL[:17]), "").text()])
    assert len(cut(parts, exact, tokenizer).dropped) == 13
    assert len(cut(parts, exact - 1, tokenizer).dropped) == 14


def test_tags_that_always_stay_do(tokenizer):
    kept = make_tag("tag29", "general", True)
    one = cut(Parts("x", "illustrious", [*tags(*MANY[:1], *GENERAL[:29]), kept], ""), 60, tokenizer)
    assert one.text.startswith("1girl, tag0, ")
    assert one.text.endswith(", tag29")


def test_sentences_go_whole_and_the_first_stays(tokenizer):
    text = "A girl smiles. " * 6 + "She has blue hair. The sky is grey."
    count = counter(str(tokenizer), PREFIX)
    one = cut(Parts("x", None, [], text), count(["A girl smiles. " * 6])[0], tokenizer)
    assert one.dropped == ["The sky is grey.", "She has blue hair."]
    assert text.startswith(one.text)
    assert one.text.endswith("A girl smiles.")
    assert cut(Parts("x", None, [], text), 1, tokenizer).text == "A girl smiles."


def test_what_is_never_dropped_may_be_too_long(tokenizer):
    sign = make_text("KEEP OUT")
    one = cut(Parts("x", "illustrious", [*tags(*MANY, *GENERAL), sign], "A. B."), 5, tokenizer)
    assert one.text == '1girl, miku, general, text "KEEP OUT". A.'
    assert one.left > 5
    assert one.dropped[-2:] == ["newest", "wokada"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.integers(0, 40), st.booleans(), st.integers(20, 120), st.sampled_from(["illustrious", "kohaku", "xml"]))
def test_whatever_is_cut_the_rest_is_a_caption(tokenizer, number, solo, limit, order):
    given_ = tags(*MANY[: 5 if solo else 1], *GENERAL[:number])
    parts = Parts("x", order, given_, "A girl. A frog.")
    one = cut(parts, limit, tokenizer)
    rest = [tag for tag in given_ if tag.text not in one.dropped]
    text = " ".join(part for part in ("A girl.", "A frog.") if part not in one.dropped)
    assert one.text == Parts("x", order, rest, text).text()
    assert all(tag in rest for tag in given_ if tag.fixed)


def test_an_unknown_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"compose\.tokenizer = '/.*nothing': neither"):
        counter(str(tmp_path / "nothing"), PREFIX)


def test_the_stage_shortens_and_reports(tokenizer, tmp_path, capsys):
    for name in ("merge", "filter", "out"):
        (tmp_path / name).mkdir()
    pairs = {"a": (*MANY, *GENERAL), "b": MANY, "c": ()}
    merge = [
        {
            "image_id": image_id,
            "tags": [{"name": name, "category": category, "origin": "source"} for name, category in found],
            "caption": "A frog.",
        }
        for image_id, found in pairs.items()
    ]
    schema = [("image_id", pa.string()), ("tags", pa.list_(TAG)), ("caption", pa.string()), ("rating", pa.string())]
    pq.write_table(pa.Table.from_pylist(merge, pa.schema(schema)), tmp_path / "merge/part-0.parquet")
    kept = [{"image_id": image_id, "keep": True} for image_id in pairs]
    pq.write_table(pa.Table.from_pylist(kept, DECISIONS), tmp_path / "filter/part-0.parquet")
    job = Job(
        source="",
        settings=ComposeSettings(tokenizer=str(tokenizer), max_tokens=100, prompt_prefix=PREFIX),
        folder=tmp_path / "out",
        tables={name: tmp_path / name for name in ("merge", "filter")},
        deciders=("filter",),
        engine=LocalEngine(1),
    )
    STAGE.run(job)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    long, short, wordless = (row["shortened"] for row in rows)
    assert short == wordless == []
    assert [one["variant"] for one in long] == ["tags", "tags_text"]
    count = counter(str(tokenizer), PREFIX)
    for one in long:
        (text,) = [caption["text"] for caption in rows[0]["captions"] if caption["variant"] == one["variant"]]
        assert count([text]) == [one["left"]]
        assert one["left"] <= 100 < one["tokens"]
        assert not {f"{name}," for name in one["dropped"]} & set(text.split())
    printed = capsys.readouterr().out
    assert (
        f"2 captions tags; 1 had more than 100 tokens and lost {len(long[0]['dropped'])} tags or sentences" in printed
    )
    assert "3 captions text\n" in printed
