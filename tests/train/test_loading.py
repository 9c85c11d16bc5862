"""Every kind of checkpoint becomes the model that its weights are of."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from peft import PeftModel
from safetensors.torch import save_file

from shared.errors import UserError
from train.loading import load_model
from train.model.adapter_files import save_adapter
from train.model.adapters import adapter_of, to_comfyui
from train.model.dit import Lumina2DiT
from train.model.lora import add_lora
from train.model.names import to_diffusers, to_original
from train.model.weights import load_transformer, save_transformer
from train.settings import LoraSettings

LORA = LoraSettings(rank=2, alpha=3.0)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def own(tiny_model: Path) -> State:
    return load_transformer(tiny_model / "transformer").float().state_dict()


@pytest.fixture(scope="module")
def adapters(tiny_model: Path) -> State:
    """Random ones, by the names of the model."""
    model = load_transformer(tiny_model / "transformer").float()
    add_lora(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(0)
    learning = {name: x for name, x in model.named_parameters() if x.requires_grad}
    return {name: 0.1 * torch.randn(x.shape, generator=generator) for name, x in learning.items()}


@pytest.fixture(scope="module")
def with_adapters(tiny_model: Path, adapters: State, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The model's weights with the adapters added by peft, under diffusers' names."""
    folder = tmp_path_factory.mktemp("peft")
    save_adapter(adapters, LORA.alpha, folder, base=None)
    plain = Lumina2Transformer2DModel.from_pretrained(tiny_model / "transformer")
    merged: State = PeftModel.from_pretrained(plain, folder).merge_and_unload().state_dict()
    return merged


def moved(state: State, by: float) -> State:
    return {name: tensor + by for name, tensor in state.items()}


def state_of(folder: Path) -> Path:
    (folder / "state.json").write_text(json.dumps({"step": 7}))
    return folder


def check(found: Lumina2DiT, expected: State) -> None:
    weights = to_diffusers(found.state_dict())
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.float(), expected[name], msg=name)


def test_weights_in_folders_and_files(tiny_model: Path, own: State, tmp_path: Path):
    config = load_transformer(tiny_model / "transformer").config
    check(load_model(None, tiny_model), to_diffusers(own))
    other = moved(own, 1)
    save_transformer(other, config, tmp_path / "pipeline" / "transformer")
    save_file(to_original(to_diffusers(other)), tmp_path / "original.safetensors")
    for source in ("pipeline", "pipeline/transformer", "original.safetensors"):
        check(load_model(str(tmp_path / source), tiny_model), to_diffusers(other))


def test_a_checkpoint_of_all_weights(tiny_model: Path, own: State, tmp_path: Path):
    config = load_transformer(tiny_model / "transformer").config
    save_transformer(moved(own, 1), config, tmp_path / "transformer_ema")
    save_transformer(moved(own, 2), config, tmp_path / "transformer")
    checkpoint = str(state_of(tmp_path))
    check(load_model(checkpoint, tiny_model), to_diffusers(moved(own, 1)))
    check(load_model(checkpoint, tiny_model, raw=True), to_diffusers(moved(own, 2)))


def test_a_checkpoint_of_adapters(tiny_model: Path, own: State, adapters: State, with_adapters: State, tmp_path: Path):
    save_adapter(adapters, LORA.alpha, tmp_path / "adapter_ema", base=None)
    config = load_transformer(tiny_model / "transformer").config
    save_transformer(moved(own, 1), config, tmp_path / "base")
    save_adapter(moved(adapters, 0), LORA.alpha, tmp_path / "adapter", base=str(tmp_path / "base"))
    checkpoint = str(state_of(tmp_path))
    check(load_model(checkpoint, tiny_model), with_adapters)
    check(load_model(checkpoint, tiny_model, raw=True), moved(with_adapters, 1))


def test_adapters_on_top_of_the_model(tiny_model: Path, adapters: State, with_adapters: State, tmp_path: Path):
    save_adapter(adapters, LORA.alpha, tmp_path / "folder", base=None)
    save_file(to_comfyui(adapter_of(adapters, LORA.alpha)), tmp_path / "comfyui.safetensors")
    for source in ("folder", "folder/adapter_model.safetensors", "comfyui.safetensors"):
        check(load_model(str(tmp_path / source), tiny_model), with_adapters)


def test_what_is_no_checkpoint_is_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="has raw weights; leave out --raw"):
        load_model(None, tiny_model, raw=True)
    with pytest.raises(UserError, match="neither a folder nor"):
        load_model(str(tmp_path / "nothing"), tiny_model)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(str(tmp_path), tiny_model)
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="is it whole"):
        load_model(str(tmp_path / "cut.safetensors"), tiny_model)
