import pytest
import torch

from shared.errors import UserError
from tests.train.model.support import MIXED, batch_of, random_model
from train.model.freeze import freeze
from train.model.packing import layout_of
from train.model.parts import PARTS
from train.optimizer import adamw
from train.precision import MasterWeights
from train.ranks import Ranks
from train.settings import OptimizerSettings

PREFIXES = {
    "text": ("context_refiner.", "time_caption_embed.caption_embedder."),
    "image": ("noise_refiner.", "x_embedder."),
    "time": ("time_caption_embed.timestep_embedder.",),
    "output": ("norm_out.",),
    "layers": ("layers.",),
    "layers.1": ("layers.1.",),
    "layers.0-1": ("layers.0.", "layers.1."),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PREFIXES)
def test_a_frozen_part_keeps_its_bits_and_the_rest_learns(part: str, dtype: torch.dtype) -> None:
    model = random_model()
    freeze(model, [part])
    masters = MasterWeights(model, dtype, Ranks())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = adamw(masters.weights, OptimizerSettings(learning_rate=1e-2, weight_decay=0.1))
    batch = batch_of(MIXED[:2])
    model(batch, layout_of(batch)).float().square().mean().backward()
    masters.collect()
    assert {name for name, weight in masters.weights.items() if weight.grad is not None} == set(masters.weights)
    optimizer.step()
    masters.publish()
    for name, tensor in model.state_dict().items():
        frozen = name.startswith(PREFIXES[part])
        assert torch.equal(tensor, before[name]) == frozen, name
        assert (name in masters.weights) != frozen
        assert not frozen or model.get_parameter(name).grad is None


def test_the_parts_are_the_model() -> None:
    model = random_model()
    found = [
        f"{module}.{name}"
        for part in PARTS.values()
        for module in part
        for name, _ in model.get_submodule(module).named_parameters()
    ]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("part", ["txt", "layers.2", "layers.1-0", "layers.0-2", "layers.", "layers.0-"])
def test_an_unknown_part_is_answered_with_those_that_there_are(part: str) -> None:
    with pytest.raises(UserError, match=r"text, image, time, layers, output, and layers\.0 to layers\.1"):
        freeze(random_model(), ["text", part])


def test_something_must_be_left_to_learn() -> None:
    with pytest.raises(UserError, match="nothing is left"):
        freeze(random_model(), list(PARTS))
