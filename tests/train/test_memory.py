"""The arithmetic of memory, against what a table says by hand."""

from typing import get_args

import pytest
import torch

from shared.errors import UserError
from train.memory import USABLE, Counts, choose, state_bytes
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.freeze import freeze
from train.model.recompute import kept_bytes
from train.settings import OptimizerSettings, Precision, Recompute, TrainSettings

CONFIG = DiTConfig(cap_feat_dim=2304)
INT8 = OptimizerSettings(states="int8")


def test_weights_are_counted():
    with torch.device("meta"):
        model = Lumina2DiT(CONFIG)
        freeze(model, ("layers",))
    counts = Counts.of(model)
    assert counts.all == 2_609_769_152  # Published.
    assert counts.learning == counts.owned == counts.all - sum(x.numel() for x in model.layers.parameters())
    assert counts.products == 26 * 2304 * (2304 + 2 * 768 + 2304 + 3 * 9216)


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 2 + 4 + 4 + 8 + 4),  # computes, gradient, master, moments, average
        ({"ema_offload": True}, 2 + 4 + 4 + 8),
        ({"masters": "bfloat16"}, 2 + 4 + 8 + 4),
        ({"optimizer": INT8}, 2 + 4 + 4 + 2 + 4),
        ({"masters": "bfloat16", "optimizer": INT8, "ema_offload": True}, 2 + 4 + 2),
    ],
)
def test_bytes_of_a_weight(changes: dict[str, object], each: int):
    settings = TrainSettings().model_copy(update=changes)
    assert state_bytes(settings, Counts(100, 100, 100, 80)) == 100 * each
    assert state_bytes(settings, Counts(100, 60, 15, 80)) == 100 * 2 + 60 * 4 + 15 * (each - 6)
    float8 = settings.model_copy(update={"precision": "float8"})
    assert state_bytes(float8, Counts(100, 60, 15, 80)) == state_bytes(settings, Counts(100, 60, 15, 80)) + 80 * 2


@pytest.mark.parametrize("precision", ["bfloat16", "float8"])
def test_the_fastest_that_fits_is_chosen(precision: Precision):
    settings = TrainSettings(token_budget=8_800, precision=precision)
    counts = Counts(10**9, 10**9, 10**9, 9 * 10**8)
    needs = {option: kept_bytes(CONFIG, 8_800, option, precision) for option in get_args(Recompute)}
    assert list(needs.values()) == sorted(needs.values(), reverse=True)
    for option, need in needs.items():
        memory = (need + state_bytes(settings, counts)) / USABLE
        assert choose(settings, CONFIG, counts, int(memory * 1.001)) == option
        assert option == "everything" or choose(settings, CONFIG, counts, int(memory * 0.999)) != option
    with pytest.raises(UserError, match=r"^train\.token_budget = 8,800: needs \d+\.\d GiB even when everything"):
        choose(settings, CONFIG, counts, int((needs["everything"] + state_bytes(settings, counts)) / USABLE * 0.999))
