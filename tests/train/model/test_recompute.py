import pytest

from train.model.config import DiTConfig
from train.model.recompute import Recompute, choose, kept_bytes

CONFIG = DiTConfig(cap_feat_dim=2304)
GIB = 2**30


@pytest.mark.parametrize(
    ("recompute", "measured"), [("nothing", 48.7), ("cheap", 28.5), ("everything", 11.6)]
)  # GiB in all, bench/results/step_h100
def test_the_memory_is_what_was_measured(recompute: Recompute, measured: float) -> None:
    tokens, weights = 4 * 4096 + 577, 2 * 2_609_769_152
    expected = (kept_bytes(CONFIG, tokens, recompute) + weights) / GIB
    assert expected == pytest.approx(measured, rel=0.06)


def test_the_fastest_that_fits_is_chosen() -> None:
    needs = [kept_bytes(CONFIG, 8_800, option) for option in ("nothing", "cheap", "everything")]
    assert needs == sorted(needs, reverse=True)
    assert [choose(CONFIG, 8_800, free) for free in needs] == ["nothing", "cheap", "everything"]
    assert choose(CONFIG, 8_800, needs[0] - 1) == "cheap"
    assert choose(CONFIG, 8_800, needs[-1] - 1) is None
