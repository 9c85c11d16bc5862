import pytest
import torch

from tests.train.model.support import CONFIG, random_model, same
from train.model.config import DiTConfig
from train.model.names import from_diffusers, from_original, to_diffusers, to_original


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
