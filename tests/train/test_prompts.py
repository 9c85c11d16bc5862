"""Embeddings of prompts: those of the text encoder, which is loaded only where one is missing."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.corpus import Corpus
from shared.errors import UserError
from tests.train.conftest import SETTINGS
from train import prompts
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.cache.text_encoder import TextEncoder
from train.prompts import embed, encode

CAPTION, NEW = "A drawing of number 2.", "1girl, green hair"
"""A caption of the cache, and a prompt that is none."""
PREFIX, LIMIT = SETTINGS.prompt_prefix, SETTINGS.max_tokens


@pytest.fixture
def _no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the text encoder is loaded")

    monkeypatch.setattr(prompts, "TextEncoder", load)


def ask(texts: list[str], model: Path, work: Path) -> dict[str, torch.Tensor]:
    return embed(texts, str(model), work, CacheReader(work))


@pytest.fixture
def drawing_only(tiny_model: Path, tmp_path: Path) -> Path:
    """A pipeline that lacks what makes embeddings."""
    for part in ("transformer", "vae"):
        shutil.copytree(tiny_model / part, tmp_path / "drawing-only" / part)
    return tmp_path / "drawing-only"


@pytest.mark.usefixtures("_no_encoder")
def test_captions_of_the_cache_and_the_empty_one_need_no_encoder(cached: Path, drawing_only: Path):
    reader = CacheReader(cached)
    found = ask([CAPTION, "", CAPTION], drawing_only, cached)
    assert found.keys() == {CAPTION, ""}
    assert torch.equal(found[CAPTION], reader.text(*reader.find([CAPTION])[CAPTION]))
    assert torch.equal(found[""], reader.empty)


def test_embeddings_are_those_of_the_encoder(cached: Path, tiny_model: Path):
    found = ask([CAPTION, NEW, ""], tiny_model, cached)
    encoder = TextEncoder(tiny_model, PREFIX, LIMIT, torch.device("cpu"))
    for text, expected in zip(found, encoder.encode(list(found)), strict=True):
        torch.testing.assert_close(found[text], expected, msg=text)
    alone = encode([NEW], str(tiny_model), PREFIX, LIMIT)
    torch.testing.assert_close(alone[NEW], found[NEW])


def test_a_prompt_is_encoded_once(cached: Path, tiny_model: Path, drawing_only: Path, monkeypatch: pytest.MonkeyPatch):
    first = ask([NEW], tiny_model, cached)
    (store,) = (cached / "prompts").iterdir()
    assert len(load_file(store)) == 1
    ask([CAPTION], drawing_only, cached)
    assert len(load_file(store)) == 2
    monkeypatch.setattr(CacheReader, "find", None)
    again = ask([NEW, CAPTION], drawing_only, cached)
    assert torch.equal(again[NEW], first[NEW])
    store.write_bytes(store.read_bytes()[:100])
    with pytest.raises(UserError, match=r"damaged .* delete it"):
        ask([NEW], drawing_only, cached)


def test_another_prefix_reuses_nothing(cached: Path, tiny_model: Path, drawing_only: Path):
    first = ask([NEW], tiny_model, cached)
    pictures = Corpus(str(cached.parent / "pictures"))
    cache(cached, pictures, tiny_model, SETTINGS.model_copy(update={"prompt_prefix": "A picture. "}))
    with pytest.raises(UserError, match="no text_encoder/"):
        ask([NEW], drawing_only, cached)
    assert len(ask([NEW], tiny_model, cached)[NEW]) != len(first[NEW])
    assert len(list((cached / "prompts").iterdir())) == 2


def test_another_encoder_is_refused(cached: Path, tiny_model: Path, tmp_path: Path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "text_encoder" / "note.txt").write_text("other weights")
    with pytest.raises(UserError, match=r"not the one that the cache was made with:\n  weights: expected"):
        ask([NEW], other, cached)
    assert not (cached / "prompts").exists()


def test_a_cache_made_on_another_device_is_as_good(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    reader = CacheReader(cached)
    expected = embed([NEW], str(tiny_model), cached, reader)
    reader.text_settings |= {"compute": "bfloat16", "attention": "flex_attention"}
    monkeypatch.setattr(prompts, "TextEncoder", None)
    assert torch.equal(embed([NEW], str(tiny_model), cached, reader)[NEW], expected[NEW])
