"""Adapters under other names: against the formulas by which others add them to a weight."""

import pytest
import torch
from torch import Tensor

from tests.train.model.support import CONFIG, LORA, learning, random_lora, random_model, relative, same
from train.model.adapters import Factors, adapter_of, from_comfyui, merged, named, pairs, to_comfyui, weights_of
from train.model.names import to_diffusers, to_original


def own_adapter() -> dict[str, Factors]:
    return adapter_of(learning(random_lora()), LORA.alpha)


def added_by_comfyui(weights: dict[str, Tensor], adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ComfyUI makes of a weight: + alpha / rank * up @ down, the rank being that of `down`."""
    result = dict(weights)
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            down, up = adapter[name], adapter[f"{module}.lora_B.weight"]
            alpha = adapter[f"{module}.alpha"].item() if f"{module}.alpha" in adapter else len(down)
            weight = module.removeprefix("diffusion_model.") + ".weight"
            result[weight] = result[weight] + alpha / len(down) * (up @ down)
    return result


def test_comfyui_adds_what_is_merged() -> None:
    state = to_diffusers(random_model().state_dict())
    tensors = to_comfyui(own_adapter())
    qkv = "diffusion_model.layers.1.attention.qkv"
    assert tensors[f"{qkv}.lora_A.weight"].shape == (3 * LORA.rank, CONFIG.hidden_size)
    assert tensors[f"{qkv}.alpha"] == 3 * LORA.alpha
    found = added_by_comfyui(to_original(state), tensors)
    expected = to_original(merged(state, own_adapter()))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert relative(tensor, expected[name]) < 1e-6, name
    assert not torch.equal(
        expected["layers.0.attention.qkv.weight"], to_original(state)["layers.0.attention.qkv.weight"]
    )


def test_names_are_there_and_back() -> None:
    weights = {name: parameter.detach() for name, parameter in learning(random_lora()).items()}
    adapter = adapter_of(weights, LORA.alpha)
    scale = LORA.alpha / LORA.rank
    assert same(weights_of(adapter, scale), weights)
    assert same(weights_of(from_comfyui(to_comfyui(adapter)), scale), weights)
    found = {name: Factors(a, b, scale) for name, (a, b) in pairs(named(adapter, "")).items()}
    assert same(weights_of(found, scale), weights)
    other = adapter_of(weights_of(adapter, 7.0), 7.0 * LORA.rank)
    for name, (a, b, scale) in adapter.items():
        assert relative(other[name].scale * other[name].b @ other[name].a, scale * b @ a) < 1e-6


def test_one_adapter_for_queries_keys_and_values_is_taken_apart() -> None:
    """As ComfyUI's trainers make them: a B that is full, and no alpha."""
    state = to_diffusers(random_model().state_dict())
    qkv = "diffusion_model.layers.0.attention.qkv.lora_"
    tensors = {f"{qkv}A.weight": torch.randn(6, CONFIG.hidden_size), f"{qkv}B.weight": torch.randn(96, 6)}
    found = to_original(merged(state, from_comfyui(tensors)))
    expected = added_by_comfyui(to_original(state), tensors)
    for name, tensor in found.items():
        assert relative(tensor, expected[name]) < 1e-6, name


def test_what_is_no_adapter_of_this_model_is_refused() -> None:
    adapter = own_adapter()
    state = to_diffusers(random_model().state_dict())
    with pytest.raises(ValueError, match=r"layers.9.attn.to_k"):
        merged(state, {"layers.9.attn.to_k": adapter["layers.1.attn.to_k"]})
    with pytest.raises(ValueError, match=r"another shape: layers.1.attn.to_q.weight"):
        merged(state, {"layers.1.attn.to_q": adapter["layers.1.attn.to_k"]})
    with pytest.raises(ValueError, match=r"missing parameters: layers.1.attn.to_k.weight"):
        weights_of({name: factors for name, factors in adapter.items() if name != "layers.1.attn.to_k"}, 1.0)
    tensors = named(adapter, "")
    del tensors["layers.1.attn.to_k.lora_B.weight"]
    with pytest.raises(ValueError, match=r"layers.1.attn.to_k.lora_B.weight"):
        pairs(tensors)
    with pytest.raises(ValueError, match=r"no_such"):
        from_comfyui({f"diffusion_model.no_such.lora_{x}.weight": torch.ones(1, 1) for x in "AB"})
