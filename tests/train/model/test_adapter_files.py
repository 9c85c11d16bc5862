"""Files of adapters, read by peft and diffusers themselves."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from tests.train.model.support import (
    LORA,
    assert_same_predictions,
    diffusers_model,
    learning,
    random_lora,
    random_model,
)
from train.model.adapter_files import base_of, diffusers_header, load_adapter, read_adapter, save_adapter
from train.model.adapters import adapter_of, named, to_comfyui
from train.model.lora import add_lora
from train.model.weights import save_tensors

SCALE = LORA.alpha / LORA.rank


def write(form: str, folder: Path) -> Path:
    """The adapters of `random_lora` in one of the namings."""
    weights = learning(random_lora())
    adapter = adapter_of(weights, LORA.alpha)
    if form == "peft":
        save_adapter(weights, LORA.alpha, folder, base="owner/name")
        return folder
    folder.mkdir()
    if form == "diffusers":
        file = folder / "pytorch_lora_weights.safetensors"
        save_tensors(named(adapter, "transformer."), file, diffusers_header(adapter))
        return folder
    save_tensors(to_comfyui(adapter), folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def test_peft_reads_a_checkpoints_folder(tmp_path: Path) -> None:
    model = random_lora()
    folder = write("peft", tmp_path / "adapter")
    assert base_of(folder) == "owner/name"
    theirs = PeftModel.from_pretrained(diffusers_model(model), str(folder))
    assert_same_predictions(model, theirs)


def test_diffusers_reads_its_file(tmp_path: Path) -> None:
    model = random_lora()
    theirs = diffusers_model(model)
    theirs.load_lora_adapter(str(write("diffusers", tmp_path / "out")), use_safetensors=True)
    assert_same_predictions(model, theirs)


def test_what_diffusers_writes_is_read(tmp_path: Path) -> None:
    theirs = diffusers_model(random_lora())
    theirs.load_lora_adapter(str(write("diffusers", tmp_path / "ours")), use_safetensors=True)
    theirs.save_lora_adapter(str(tmp_path / "theirs"), adapter_name="default_0")
    found = read_adapter(tmp_path / "theirs")
    for name, (a, b, scale) in read_adapter(tmp_path / "ours").items():
        assert torch.equal(found[name].a, a)
        assert torch.equal(found[name].b, b)
        assert found[name].scale == pytest.approx(scale)


@pytest.mark.parametrize("form", ["peft", "diffusers", "comfyui"])
def test_training_goes_on_from_any_of_them(form: str, tmp_path: Path) -> None:
    expected = random_lora()
    path = write(form, tmp_path / "adapter")
    same, other = random_model(), random_model()
    add_lora(same, LORA, seed=3)
    load_adapter(same, path, SCALE)
    for name, parameter in learning(same).items():
        assert torch.equal(parameter, expected.get_parameter(name))
    # Another alpha weighs B otherwise, and the model is the same.
    add_lora(other, LORA.model_copy(update={"alpha": 1.0}), seed=3)
    load_adapter(other, path, 1.0 / LORA.rank)
    reference = PeftModel.from_pretrained(diffusers_model(expected), str(write("peft", tmp_path / "peft")))
    assert_same_predictions(other, reference)


def test_a_file_without_alpha_weighs_one(tmp_path: Path) -> None:
    model = random_lora()
    save_tensors(named(adapter_of(learning(model), LORA.alpha), "transformer."), tmp_path / "some.safetensors")
    found = random_model()
    add_lora(found, LORA, seed=0)
    load_adapter(found, tmp_path / "some.safetensors", SCALE)
    theirs = diffusers_model(model)
    theirs.load_lora_adapter(load_file(tmp_path / "some.safetensors"))
    assert_same_predictions(found, theirs)


def test_what_does_not_fit_is_refused_by_file(tmp_path: Path) -> None:
    model = random_model()
    add_lora(model, LORA.model_copy(update={"rank": 8}), seed=0)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_adapter(model, path, SCALE)

    folder = write("peft", tmp_path / "adapter")
    refused(folder, r"adapter: its adapters, of rank 3, are not those of train.lora; of another shape: .*lora_A")
    refused(tmp_path, "no adapter_model.safetensors and no pytorch_lora_weights.safetensors")
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"r": 3', '"r": 3, "use_rslora": true'))
    refused(folder, "adapter_model.safetensors: adapters with use_rslora")
    (folder / "adapter_config.json").unlink()
    refused(folder, r"adapter_config.json: no such file")
    save_file({"transformer.layers.0.attn.to_q.magnitude": torch.ones(1)}, tmp_path / "odd.safetensors")
    refused(tmp_path / "odd.safetensors", r"odd.safetensors: not lora_A and lora_B of a matrix: .*magnitude")
