"""Similar embeddings, against all products in float64; and what the stage `near` makes of them."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedupe import near
from curate.dedupe import neighbours as module
from curate.dedupe.descriptor import describe
from curate.dedupe.neighbours import neighbours
from curate.measure import phash
from shared.errors import UserError

ROUNDING = 1e-5


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def clustered(count: int, dim: int, clusters: int, spread: float) -> np.ndarray:
    """Embeddings around some centres, `spread` away from them, in any order."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((clusters, dim))
    return unit(centres[random.integers(clusters, size=count)] + spread * random.standard_normal((count, dim)))


def check(embeddings: np.ndarray, threshold: float) -> None:
    """What is found is what brute force finds, but for pairs whose cosine is the threshold to rounding."""
    exact = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    pairs, cosines = neighbours(embeddings, threshold)
    found = [tuple(pair) for pair in pairs.tolist()]
    assert found == sorted(set(found))
    surely, maybe = (
        {tuple(pair) for pair in np.argwhere(np.triu(exact >= limit, 1)).tolist()}
        for limit in (threshold + ROUNDING, threshold - ROUNDING)
    )
    assert surely <= set(found) <= maybe
    np.testing.assert_allclose(cosines, exact[tuple(pairs.T)], atol=ROUNDING)


@settings(deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.floats(0.5, 1),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_all_pairs_are_found_whatever_the_size_of_the_blocks(count, dim, seed, threshold, blocks):
    embeddings = unit(np.random.default_rng(seed).standard_normal((count, dim)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCKS", dict.fromkeys(["cpu", "cuda"], blocks))
        check(embeddings, threshold)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_a_gpu_finds_the_same(threshold):
    check(clustered(10_000, 768, 2_000, 0.5), threshold)


@pytest.fixture
def _lists(monkeypatch):
    """As if there were more embeddings than can all be compared, and no GPU."""
    monkeypatch.setattr(module, "EXACT", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_lists")
def test_lists_leave_little_out_and_add_nothing(monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 999)
    embeddings = clustered(8_000, 64, 800, 0.4)
    exact = np.triu(embeddings.astype(np.float64) @ embeddings.astype(np.float64).T, 1)
    pairs, cosines = neighbours(embeddings, 0.75)
    found = [tuple(pair) for pair in pairs.tolist()]
    assert found == sorted(set(found))
    np.testing.assert_allclose(cosines, exact[tuple(pairs.T)], atol=ROUNDING)
    assert cosines.min() >= 0.75 - ROUNDING
    assert len(found) >= 0.99 * (exact >= 0.75).sum() > 10_000


@pytest.mark.usefixtures("_lists")
def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"3 pictures .*illustrious-lu\[semantic\]"):
        neighbours(clustered(3, 4, 1, 0.1), 0.9)


@pytest.mark.parametrize("exact", [0, 1000])
def test_more_pairs_than_can_be_held_are_an_error(exact, monkeypatch):
    monkeypatch.setattr(module, "EXACT", exact)
    monkeypatch.setattr(module, "MOST", 780)
    same = np.repeat(clustered(1, 8, 1, 0), 40, axis=0)
    assert len(neighbours(same, 0.9)[0]) == 40 * 39 // 2 == 780
    with pytest.raises(UserError, match=r"near\.cosine = 0\.9: more than 780 pairs"):
        neighbours(np.repeat(same, 2, axis=0), 0.9)


EMBED = pa.schema({"image_id": pa.string(), "embedding": pa.binary(2 * 8), "error": pa.string(), "detail": pa.string()})
SCHEMAS = {"near": near.NEAR, "embed": EMBED}


def embedding(*cosines: float) -> bytes:
    """Of length 1, with these first numbers."""
    rest = np.zeros(8 - len(cosines))
    rest[-1] = np.sqrt(1 - np.sum(np.square(cosines)))
    return np.concatenate([cosines, rest]).astype("<f2").tobytes()


@pytest.fixture
def tables(make):
    """A picture, a crop of it, another picture and one without an embedding; none has a near hash."""
    whole = make.draw(1, (400, 400))
    images = {"a": whole, "b": whole.crop((30, 15, 385, 370)), "c": make.draw(2), "d": whole}
    hashes = {name: phash(image.convert("L")) for name, image in images.items()} | {
        "d": ~phash(whole.convert("L")) % 2**64
    }
    rows = [
        make.picture(name, phash=hashes[name], descriptor=describe(image), width=image.width, height=image.height)
        for name, image in images.items()
    ]
    embeddings = {"a": embedding(1.0), "b": embedding(0.9), "c": embedding(0.85, 0.5), "d": None}
    embed = [
        {"image_id": name, "embedding": vector, "error": None if vector else "undecodable"}
        for name, vector in embeddings.items()
    ]
    return {"ingest": rows, "exact": make.kept(*images), "embed": embed}


def test_a_crop_with_another_hash_is_found_by_its_embedding_and_verified(run_stage, tables):
    first, second = (row["phash"] for row in tables["ingest"][:2])
    assert (first ^ second).bit_count() > 8
    assert all(row["keep"] for row in run_stage(near.STAGE, tables, SCHEMAS))
    found = run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8)
    assert [(row["image_id"], row["keeper"]) for row in found] == [("a", None), ("b", "a"), ("c", None), ("d", None)]
    detail = json.loads(found[1]["detail"])
    assert detail["distance"] == (first ^ second).bit_count()
    assert detail["cosine"] == pytest.approx(0.9, abs=1e-3)
    assert 0.6 < detail["overlap"] < 0.9
    assert all(row["keep"] for row in run_stage(near.STAGE, tables, SCHEMAS, cosine=0.95))


def test_the_order_of_rows_does_not_matter(run_stage, tables):
    expected = run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8)
    for seed in range(5):
        order = np.random.default_rng(seed)
        shuffled = {name: [rows[i] for i in order.permutation(len(rows))] for name, rows in tables.items()}
        assert run_stage(near.STAGE, shuffled, SCHEMAS, cosine=0.8) == expected


def test_a_pair_with_a_near_hash_is_compared_once_and_its_cosine_known(run_stage, tables, monkeypatch):
    tables["ingest"][1]["phash"] = tables["ingest"][0]["phash"] ^ 1
    compared = []
    compare = near.compare

    def counting(a, *others):
        compared.append(len(a))
        return compare(a, *others)

    monkeypatch.setattr(near, "compare", counting)
    found = run_stage(near.STAGE, tables, SCHEMAS, cosine=0.88)
    assert compared == [1]
    detail = json.loads(found[1]["detail"])
    assert (detail["distance"], detail["cosine"]) == (1, pytest.approx(0.9, abs=1e-3))
    detail = json.loads(run_stage(near.STAGE, tables, SCHEMAS, cosine=0.95)[1]["detail"])
    assert detail["distance"] == 1
    assert "cosine" not in detail


def test_blank_pictures_and_those_dropped_before_are_left_alone(run_stage, tables):
    tables["ingest"][1]["flatness"] = 0.99
    assert all(row["keep"] for row in run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8))
    tables["ingest"][1]["flatness"] = 0.5
    tables["exact"][0] |= {"keep": False, "reason": "pixel_copy", "keeper": "d"}
    found = run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8)
    assert [(row["image_id"], row["keep"]) for row in found] == [("b", True), ("c", True), ("d", True)]


def test_no_embeddings_are_no_error_but_no_stage_embed_is(run_stage, tables):
    for row in tables["embed"]:
        row["embedding"] = None
    assert all(row["keep"] for row in run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8))
    del tables["embed"]
    with pytest.raises(UserError, match=r"near\.cosine = 0\.8: needs the stage curate\.embed before"):
        run_stage(near.STAGE, tables, SCHEMAS, cosine=0.8)
