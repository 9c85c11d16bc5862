import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from tests.train.model.support import CONFIG, random_lora, random_model
from train.model.dit import Lumina2DiT
from train.model.freeze import freeze
from train.model.parts import rate_factors

MODEL = Lumina2DiT(CONFIG)
PIECES = ("text", "image", "time", "layers.0", "layers.1", "output")
"""Together the model, too."""


@given(st.dictionaries(st.sampled_from(PIECES), st.floats(0.01, 10)))
def test_a_parameter_has_the_factor_of_its_part(rates: dict[str, float]) -> None:
    found = rate_factors(MODEL, rates)
    for part, factor in rates.items():
        frozen = Lumina2DiT(CONFIG)
        freeze(frozen, [part])
        names = [name for name, weight in frozen.named_parameters() if not weight.requires_grad]
        assert {found.pop(name) for name in names} == {factor}
    assert not found


def test_a_range_of_layers_is_each_of_them() -> None:
    assert rate_factors(MODEL, {"layers.0-1": 2.0}) == rate_factors(MODEL, {"layers": 2.0})


@pytest.mark.parametrize("parts", [("layers", "layers.0"), ("layers.0-1", "layers.1"), ("text", "layers.1", "layers")])
def test_two_factors_of_one_weight_are_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"{parts[-2]} and {parts[-1]} have weights in common"):
        rate_factors(MODEL, dict.fromkeys(parts, 0.5))


def test_parts_that_do_not_exist_or_learn_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.optimizer\.rates: no part 'refiner'; there are text, image"):
        rate_factors(MODEL, {"refiner": 0.5})
    model = random_model()
    freeze(model, ["time"])
    with pytest.raises(UserError, match="nothing of time learns"):
        rate_factors(model, {"time": 0.5})
    adapters = random_lora()
    assert rate_factors(adapters, {"text": 0.5}).keys() < {name for name, _ in adapters.named_parameters()}
    with pytest.raises(UserError, match="nothing of output learns"):
        rate_factors(adapters, {"output": 0.5})
