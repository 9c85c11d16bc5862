"""Adapters against peft's own, on diffusers' model."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from tests.train.model.support import (
    CONFIG,
    LORA,
    MIXED,
    assert_same_predictions,
    batch_of,
    diffusers_model,
    learning,
    predictions,
    random_lora,
    random_model,
    reference_prediction,
    relative,
)
from train.model.adapters import adapter_of, named
from train.model.dit import Lumina2DiT
from train.model.lora import add_lora
from train.model.packing import layout_of
from train.optimizer import adamw
from train.precision import MasterWeights
from train.ranks import Ranks
from train.settings import LoraSettings, LoraTarget, OptimizerSettings, Recompute

MATRICES = {
    "attention": ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"],
    "feed_forward": ["feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"],
}


def peft_model(model: Lumina2DiT, settings: LoraSettings) -> Any:
    """diffusers' model with peft's adapters, of the same numbers."""
    reference = diffusers_model(model)
    targets = [name for target in settings.targets for name in MATRICES[target]]
    reference.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets))
    theirs = in_peft(reference)
    ours = named(adapter_of(learning(model), settings.alpha), "")
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        parameter.data.copy_(ours[name])
    return reference


def in_peft(reference: Any) -> dict[str, Tensor]:
    """The adapters' parameters, without their name."""
    return {name.replace(".default", ""): p for name, p in reference.named_parameters() if "lora" in name}


@pytest.mark.parametrize("targets", [("attention", "feed_forward"), ("attention",), ("feed_forward",)])
def test_predictions_and_gradients_are_those_of_peft(targets: tuple[LoraTarget, ...]) -> None:
    settings = LORA.model_copy(update={"targets": targets})
    model = random_lora(settings)
    reference = peft_model(model, settings)
    generator = torch.Generator().manual_seed(2)
    for sample, found in zip(MIXED, predictions(model), strict=True):
        expected = reference_prediction(reference, sample)
        assert relative(found, expected) < 1e-5
        target = torch.randn(found.shape, generator=generator)
        (found * target).sum().backward(retain_graph=True)
        (expected * target).sum().backward()
    gradients = {name: parameter.grad for name, parameter in learning(model).items() if parameter.grad is not None}
    ours = named(adapter_of(gradients, settings.alpha), "")
    theirs = in_peft(reference)
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert parameter.grad is not None
        assert relative(ours[name], parameter.grad) < 2e-5, name
    assert not any(p.grad is not None for p in model.parameters() if not p.requires_grad)


def test_adapters_begin_as_those_of_peft() -> None:
    plain, model = random_model(), random_model()
    add_lora(model, LoraSettings(rank=16, alpha=32), seed=4)
    batch = batch_of(MIXED)
    assert torch.equal(model(batch, layout_of(batch)), plain(batch, layout_of(batch)))
    for name, parameter in learning(model).items():
        if name.endswith("lora_B"):
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])  # torch.nn.init.kaiming_uniform_ with a = sqrt(5)
        assert 0.97 * bound < parameter.abs().max() <= bound
        assert abs(parameter.detach().mean()) < 0.1 * bound
        assert abs(float(parameter.detach().std()) / (bound / math.sqrt(3)) - 1) < 0.1
    again, other = random_model(), random_model()
    add_lora(again, LoraSettings(rank=16), seed=4)
    add_lora(other, LoraSettings(rank=16), seed=5)
    name = "layers.1.attn.to_qkv.lora_A"
    assert torch.equal(again.get_parameter(name), model.get_parameter(name))
    assert not torch.equal(other.get_parameter(name), model.get_parameter(name))
    assert not torch.equal(model.get_parameter("layers.0.attn.to_qkv.lora_A"), model.get_parameter(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["nothing", "everything"])
def test_training_changes_the_adapters_alone(dtype: torch.dtype, recompute: Recompute) -> None:
    model = random_model()
    add_lora(model, LORA, seed=0)
    model.recompute = recompute
    masters = MasterWeights(model, dtype, Ranks())
    assert {name.rpartition(".")[2] for name in masters.weights} == {"lora_A", "lora_B"}
    assert all(weight.dtype == torch.float32 for weight in masters.weights.values())
    assert model.dtype == dtype
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = adamw(masters.weights, OptimizerSettings(learning_rate=1e-2))
    batch = batch_of(MIXED[:2])
    for _ in range(3):
        model(batch, layout_of(batch)).float().square().mean().backward()
        masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        masters.publish()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("lora" in name), name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_every_matrix_of_every_block_has_an_adapter() -> None:
    blocks = CONFIG.num_layers + 2 * CONFIG.num_refiner_layers
    assert len(adapter_of(learning(random_lora()), LORA.alpha)) == 7 * blocks


def test_the_reference_without_adapters_differs() -> None:
    model = random_lora()
    with pytest.raises(AssertionError):
        assert_same_predictions(model, diffusers_model(model))
