import pytest

from train.model.config import DiTConfig
from train.model.recompute import Recompute, kept_bytes

CONFIG = DiTConfig(cap_feat_dim=2304)
GIB = 2**30


@pytest.mark.parametrize(
    ("recompute", "measured"), [("nothing", 48.7), ("cheap", 28.5), ("everything", 11.6)]
)  # GiB in all, bench/results/step_h100
def test_the_memory_is_what_was_measured(recompute: Recompute, measured: float) -> None:
    tokens, weights = 4 * 4096 + 577, 2 * 2_609_769_152
    expected = (kept_bytes(CONFIG, tokens, recompute) + weights) / GIB
    assert expected == pytest.approx(measured, rel=0.06)
