import json
import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from shared.errors import UserError
from tests.train.model.support import CONFIG, random_model, same
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.names import to_diffusers, to_original
from train.model.weights import load_state, load_transformer, load_weights, save_transformer


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


def test_an_index_lists_the_files_to_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_state(tmp_path), {"a": torch.ones(1), "b": torch.zeros(2)})


def test_weights_are_taken_from_wherever_they_lie(tmp_path: Path) -> None:
    model = random_model()
    state = to_diffusers(model.state_dict())
    original = to_original(state)
    prefixed = {f"model.diffusion_model.{name}": x for name, x in original.items()}
    files = {
        "diffusers": state,
        "original": original,
        "no_norm_final": {name: x for name, x in original.items() if name != "norm_final.weight"},
        "all_in_one": prefixed | {"vae.encoder.conv_in.weight": torch.ones(1), "text_encoders.x": torch.ones(1)},
    }
    for name, tensors in files.items():
        save_file({name: x.clone() for name, x in tensors.items()}, tmp_path / f"{name}.safetensors")
    save_transformer(model.state_dict(), CONFIG, tmp_path / "alone")
    save_transformer(model.state_dict(), CONFIG, tmp_path / "pipeline" / "transformer")
    save_transformer(model.state_dict(), replace(CONFIG, sample_size=7), tmp_path / "run" / "transformer_ema")
    raw = {name: x + 1 for name, x in model.state_dict().items()}
    save_transformer(raw, CONFIG, tmp_path / "run" / "transformer")
    for source in (*(f"{name}.safetensors" for name in files), "alone", "pipeline", "run"):
        loaded = load_weights(str(tmp_path / source), CONFIG)
        assert same(loaded.state_dict(), model.state_dict()), source
        assert loaded.config == CONFIG
    assert same(load_weights(str(tmp_path / "run" / "transformer"), CONFIG).state_dict(), raw)


def test_weights_that_do_not_fit_are_refused_by_file(tmp_path: Path) -> None:
    original = to_original(to_diffusers(random_model().state_dict()))
    file = tmp_path / "some.safetensors"

    def refusal(source: Path) -> str:
        with pytest.raises(UserError) as refused:
            load_weights(str(source), CONFIG)
        return str(refused.value)

    save_file({name: x.clone() for name, x in original.items() if name != "x_embedder.weight"}, file)
    assert re.search(r"some.safetensors: .* missing: x_embedder.weight", refusal(file))
    save_file({"lora.weight": torch.ones(1), "x_embedder.bias": torch.ones(1)}, file)
    assert re.search(r"some.safetensors: not parameters .*: lora.weight", refusal(file))
    save_file({"layers.0.attention.qkv.weight": torch.ones(96, 47)}, file)
    assert re.search(r"some.safetensors: .*attn.qkv.weight: \(96, 47\) does not divide", refusal(file))
    file.write_bytes(b"no tensors at all")
    assert re.search(r"some.safetensors: cannot be read", refusal(file))
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert re.search(r"model.ckpt: only .safetensors", refusal(tmp_path / "model.ckpt"))
    assert re.search(r"no transformer/config.json in it", refusal(tmp_path))
    other = replace(CONFIG, axes_dim_rope=(8, 2, 2))
    save_transformer(random_model(other).state_dict(), other, tmp_path / "other")
    assert re.search(
        r"other/config.json .*\n  axes_dim_rope: expected \[4, 4, 4\], found \[8, 2, 2\]", refusal(tmp_path / "other")
    )


def test_a_name_that_is_nowhere_is_looked_up_in_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_transformer(random_model().state_dict(), CONFIG, tmp_path)
    files = [*(str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()), "vae/config.json", "huge.safetensors"]
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        found = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns))
        assert sorted(found) == ["config.json", "diffusion_pytorch_model.safetensors"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_weights("owner/name", CONFIG).config == CONFIG
    assert asked == ["owner/name"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="neither a folder nor"):
        load_weights("no such/name at all", CONFIG)
