import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.train.model.support import CONFIG, random_model
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.weights import (
    from_diffusers,
    from_original,
    load_state,
    load_transformer,
    save_transformer,
    to_diffusers,
    to_original,
)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_names_and_shapes_are_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        ours = to_diffusers(Lumina2DiT(DiTConfig(cap_feat_dim=2304)).state_dict())
        theirs = diffusers.Lumina2Transformer2DModel(cap_feat_dim=2304).state_dict()
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_through_diffusers(tmp_path: Path, dtype: torch.dtype) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = random_model().to(dtype)
    save_transformer(model.state_dict(), CONFIG, tmp_path / "ours")
    theirs = diffusers.Lumina2Transformer2DModel.from_pretrained(tmp_path / "ours", torch_dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    loaded = load_transformer(tmp_path / "theirs")
    assert loaded.config == CONFIG
    assert same(loaded.state_dict(), model.state_dict())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_file_can_be_replaced_by_the_model_loaded_from_it(tmp_path: Path) -> None:
    model = random_model()
    save_transformer(model.state_dict(), CONFIG, tmp_path)
    loaded = load_transformer(tmp_path)
    save_transformer(loaded.state_dict(), CONFIG, tmp_path)
    assert same(loaded.state_dict(), model.state_dict())
    assert same(load_state(tmp_path), to_diffusers(model.state_dict()))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    state = random_model().state_dict()
    state["stray.weight"] = state.pop("norm_out.linear_1.bias")
    state["x_embedder.bias"] = state["x_embedder.bias"][:-1].clone()
    with pytest.raises(
        ValueError, match=r"missing: norm_out.linear_1.bias; unexpected: stray.weight; .*x_embedder.bias"
    ):
        save_transformer(state, CONFIG, tmp_path)
    assert not any(tmp_path.iterdir())
    save_file(
        {name: x.clone() for name, x in to_diffusers(state).items()}, tmp_path / "diffusion_pytorch_model.safetensors"
    )
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    with pytest.raises(ValueError, match=r"missing: norm_out.linear_1.bias; unexpected: stray.weight"):
        load_transformer(tmp_path)


def test_own_names_are_the_same_numbers() -> None:
    state = random_model().state_dict()
    assert same(from_diffusers(to_diffusers(state)), state)
    assert sum(x.numel() for x in to_diffusers(state).values()) == sum(x.numel() for x in state.values())


def test_round_trip_through_original_names() -> None:
    state = to_diffusers(random_model().state_dict())
    original = to_original(state)
    assert same(from_original(original), state)
    assert same(from_original({f"model.diffusion_model.{name}": x for name, x in original.items()}), state)


def test_original_names() -> None:
    """Those of the released checkpoint, as diffusers' converter and ComfyUI's `lumina/model.py` spell them."""
    original = to_original(to_diffusers(random_model().state_dict()))
    block = {
        *(
            "attention.qkv.weight",
            "attention.out.weight",
            "attention.q_norm.weight",
            "attention.k_norm.weight",
        ),
        *("feed_forward.w1.weight", "feed_forward.w2.weight", "feed_forward.w3.weight"),
        *("attention_norm1.weight", "attention_norm2.weight", "ffn_norm1.weight", "ffn_norm2.weight"),
    }
    modulation = {"adaLN_modulation.1.weight", "adaLN_modulation.1.bias"}
    assert {name.removeprefix("layers.1.") for name in original if name.startswith("layers.1.")} == block | modulation
    assert {name[18:] for name in original if name.startswith("context_refiner.0.")} == block
    assert {name for name in original if not name.startswith(("layers", "context_refiner", "noise_refiner"))} == {
        *("x_embedder.weight", "x_embedder.bias", "norm_final.weight"),
        *("cap_embedder.0.weight", "cap_embedder.1.weight", "cap_embedder.1.bias"),
        *(
            "t_embedder.mlp.0.weight",
            "t_embedder.mlp.0.bias",
            "t_embedder.mlp.2.weight",
            "t_embedder.mlp.2.bias",
        ),
        *("final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias"),
        *("final_layer.linear.weight", "final_layer.linear.bias"),
    }
    assert torch.equal(original["norm_final.weight"], torch.ones(CONFIG.hidden_size))


def test_from_original_agrees_with_diffusers_converter() -> None:
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_lumina2_to_diffusers
    # diffusers' converter knows the released width only.
    config = DiTConfig(cap_feat_dim=8, num_layers=1, num_refiner_layers=1, multiple_of=64, ffn_dim_multiplier=0.01)
    state = to_diffusers(random_model(config).bfloat16().state_dict())
    assert same(from_original(to_original(state)), convert(to_original(state)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.0.ffn_norm1.weight", "layers.0.ffn_norm3.weight"),
        ("context_refiner.0.norm1.weight", "context_refiner.0.norm1.norm.weight"),
        ("x_embedder.bias", "pos_embed"),
    ],
)
def test_foreign_names_are_refused(old: str, new: str) -> None:
    state = to_diffusers(random_model().state_dict())
    state[new] = state.pop(old)
    with pytest.raises(ValueError, match=new):
        to_original(state)


def test_a_projection_alone_cannot_be_converted() -> None:
    state = to_diffusers(random_model().state_dict())
    del state["layers.1.attn.to_k.weight"]
    with pytest.raises(ValueError, match=r"missing.*layers\.1\.attn\.to_k\.weight"):
        to_original(state)


def test_an_index_lists_the_files_to_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_state(tmp_path), {"a": torch.ones(1), "b": torch.zeros(2)})
