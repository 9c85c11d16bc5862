"""The loss on held-out pictures: a plain loop through diffusers' model, whoever computes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from shared.corpus import Corpus
from shared.errors import UserError
from tests.train.conftest import SETTINGS as CACHE
from tests.train.conftest import add_pictures
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.data.plan import VALIDATION
from train.data.random import normal, stream_key
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.weights import load_weights
from train.settings import TrainSettings, ValidationSettings
from train.validation import Validation, by_series

ALL = 0.9999
"""Share of the pictures: all there are in these tests."""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Lumina2DiT:
    folder = tiny_model / "transformer"
    return load_weights(str(folder), DiTConfig.from_folder(folder)).float()


def validation(
    model: Lumina2DiT, work: Path, rank: int = 0, ranks: int = 1, share: float = ALL, **changes: Any
) -> Validation:
    """`changes` are of the settings of validation, or else of the run's."""
    own = {
        name: value for name, value in changes.items() if name in ValidationSettings.model_fields and name != "captions"
    }
    others = {name: value for name, value in changes.items() if name not in own}
    settings = TrainSettings(
        validation=ValidationSettings(share=share, **{"times": 2, **own}), **{"token_budget": 400, **others}
    )
    return Validation(CacheReader(work), settings, model.config, rank, ranks)


def sums(model: Lumina2DiT, work: Path, ranks: int = 1, **changes: Any) -> Tensor:
    """Of all ranks together."""
    return torch.stack([validation(model, work, rank, ranks, **changes).sums(model) for rank in range(ranks)]).sum(0)


def plain(
    tiny_model: Path, reader: CacheReader, pictures: list[tuple[int, str | None]], times: list[float]
) -> list[float]:
    """The mean loss of pictures with captions at each time, through diffusers' model, one after the other."""
    reference = Lumina2Transformer2DModel.from_pretrained(tiny_model / "transformer")
    expected = torch.zeros(len(times), dtype=torch.float64)
    for index, caption in pictures:
        data = (reader.latent(index).double() - reader.shift_factor) * reader.scaling_factor
        text = reader.text(index, caption).float()
        for number, time in enumerate(times):
            key = stream_key(0, VALIDATION, int(reader.image_id(index)[:16], 16), number)
            noise = torch.from_numpy(normal(key, data.numel())).view(data.shape).double()
            seen = (time * data + (1 - time) * noise).float()
            mask = torch.ones(1, len(text), dtype=torch.long)
            with torch.no_grad():
                velocity = reference(seen[None], torch.tensor([time]), text[None], mask).sample[0]
            expected[number] += (velocity.double() - (data - noise)).square().mean() / len(pictures)
    return expected.tolist()


def test_equals_a_plain_loop_through_diffusers(cached_once: Path, tiny_model: Path, model: Lumina2DiT):
    reader = CacheReader(cached_once)
    captions = [min(reader.variants(index), default=None) for index in range(5)]
    assert {None, "tags"} == set(captions)
    expected = plain(tiny_model, reader, list(enumerate(captions)), [1 / 6, 1 / 2, 5 / 6])
    found = sums(model, cached_once, images=5, times=3)
    assert found[1].tolist() == [[5, 5, 5]]
    assert (found[0] / found[1])[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_captions_and_areas_are_told_apart(curated: Path, tiny_model: Path, model: Lumina2DiT):
    cache(curated, Corpus(str(curated.parent / "pictures")), tiny_model, CACHE.model_copy(update={"areas": (32, 64)}))
    reader = CacheReader(curated)
    both = [index for index in range(reader.images) if reader.variants(index) == ["tags", "text"]][:2]
    settings = ValidationSettings(share=ALL, times=2, images=2, captions=("text", "tags"), areas=(32, 64))
    shown = Validation(reader, TrainSettings(validation=settings, token_budget=400), model.config)
    found = shown.record(7, shown.sums(model))
    assert found["series"] == {
        f"{caption} {area} px": pytest.approx(
            plain(tiny_model, reader.at(area), [(index, caption) for index in both], [1 / 4, 3 / 4]), rel=1e-5
        )
        for area in (32, 64)
        for caption in ("text", "tags")
    }
    assert found["by_time"] == pytest.approx(torch.tensor(list(found["series"].values())).mean(0).tolist())
    assert found["loss"] == pytest.approx(sum(found["by_time"]) / 2)
    assert by_series(found).startswith(f" (text 32 px {sum(found['series']['text 32 px']) / 2:.4f}, tags 32 px ")


@pytest.mark.parametrize(("ranks", "budget"), [(1, 1), (1, 100_000), (2, 200), (3, 90)])
def test_ranks_and_micro_batches_change_nothing(cached_once: Path, model: Lumina2DiT, ranks: int, budget: int):
    whole = sums(model, cached_once)
    assert whole[1].tolist() == [[11, 11]]
    torch.testing.assert_close(sums(model, cached_once, ranks, token_budget=budget), whole, rtol=1e-5, atol=0)


def test_ranks_without_samples_have_nothing_to_add(cached_once: Path, model: Lumina2DiT):
    whole = sums(model, cached_once, images=1)
    torch.testing.assert_close(sums(model, cached_once, 3, images=1), whole, rtol=1e-5, atol=0)


def test_pictures_count_the_same_in_a_dataset_that_grows(cached: Path, tmp_path: Path, model: Lumina2DiT, tiny_model):
    before = sums(model, cached)
    added = tmp_path / "added" / "work"
    for work in (cached, added):
        add_pictures(work, [(64, 48), (40, 40), (90, 30)], first=11)
        cache(work, Corpus(str(work.parent / "pictures")), tiny_model, CACHE)
    assert CacheReader(cached).image_id(0) != CacheReader(added).image_id(0)
    torch.testing.assert_close(sums(model, cached), before + sums(model, added), rtol=1e-4, atol=0)


def test_other_settings_of_a_run_change_nothing(cached_once: Path, model: Lumina2DiT):
    other = sums(model, cached_once, seed=5, batch=3, caption_dropout=1.0, pooled_loss=0.0, captions={"text": 1.0})
    assert torch.equal(other, sums(model, cached_once))


def test_so_many_pictures_are_those_with_the_lowest_ids(cached_once: Path, model: Lumina2DiT):
    second = int(CacheReader(cached_once).image_id(1)[:12], 16) / 16**12
    found = sums(model, cached_once, images=2)
    assert found[1].tolist() == [[2, 2]]
    assert torch.equal(found, sums(model, cached_once, share=second + 1e-9))


def test_nothing_is_learned_from_it(cached_once: Path, model: Lumina2DiT):
    seen = []
    hook = model.register_forward_pre_hook(lambda *_: seen.append((model.training, torch.is_grad_enabled())))
    for training in (True, False):
        sums(model.train(training), cached_once, images=1)
        assert model.training is training
    hook.remove()
    assert set(seen) == {(False, False)}


def test_no_picture_held_out(cached_once: Path, model: Lumina2DiT):
    with pytest.raises(UserError, match=r"train\.validation\.share = 1e-12: holds out 0 of the 11 pictures"):
        sums(model, cached_once, share=1e-12)


def test_a_record_has_the_curve_and_its_mean(cached_once: Path, model: Lumina2DiT):
    one = validation(model, cached_once)
    found = one.record(999, torch.tensor([[[1.0, 4.0]], [[2.0, 2.0]]], dtype=torch.float64))
    expected = {"step": 999, "loss": 1.25, "by_time": [0.5, 2.0], "series": {"captions 64 px": [0.5, 2.0]}}
    assert json.loads(json.dumps(found)) == expected
    assert not by_series(found)


def test_captions_that_no_picture_has(cached_once: Path, model: Lumina2DiT, monkeypatch: pytest.MonkeyPatch):
    settings = TrainSettings(validation=ValidationSettings(share=ALL, captions=("tags", "poem")))
    with pytest.raises(
        UserError, match=r"^train\.validation\.captions: no 'poem'; the cache has the variants tags, text$"
    ):
        Validation(CacheReader(cached_once), settings, model.config)
    monkeypatch.setattr(CacheReader, "variants", lambda *_: ["tags"])
    settings = TrainSettings(validation=ValidationSettings(share=ALL, captions=("tags", "text")))
    with pytest.raises(
        UserError, match=r"11 of the 11 pictures of the cache, none with the captions tags, text; raise"
    ):
        Validation(CacheReader(cached_once), settings, model.config)
