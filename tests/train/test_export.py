"""Exported weights, loaded by those they are for."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from shared.errors import UserError
from train.cli import app
from train.export import write as export
from train.model.adapter_files import save_adapter
from train.model.lora import add_lora
from train.model.names import from_original, to_diffusers
from train.model.packing import layout_of, pack
from train.model.weights import load_transformer, save_transformer
from train.settings import ExportDtype, ExportFormat, LoraSettings

LORA = LoraSettings(rank=2, alpha=3.3)


def state_of(folder: Path, step: int) -> Path:
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


@pytest.fixture(scope="module")
def full(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of all weights, the raw ones moved by one from the averaged ones."""
    folder = tmp_path_factory.mktemp("full")
    model = load_transformer(tiny_model / "transformer")
    save_transformer(model.state_dict(), model.config, folder / "transformer_ema")
    save_transformer({name: x + 1 for name, x in model.state_dict().items()}, model.config, folder / "transformer")
    return state_of(folder, 7)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """The model with random adapters."""
    model = load_transformer(tiny_model / "transformer").float()
    add_lora(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def adapters(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of adapters, the raw ones being zero."""
    folder = tmp_path_factory.mktemp("adapters")
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_adapter(learning, LORA.alpha, folder / "adapter_ema", base=None)
    zero = {name: torch.zeros_like(parameter) for name, parameter in learning.items()}
    save_adapter(zero, LORA.alpha, folder / "adapter", base=None)
    return state_of(folder, 9)


def pipeline(folder: Path) -> Any:
    return Lumina2Pipeline.from_pretrained(folder)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, 6, generator=generator), torch.randn(5, 128, generator=generator), torch.tensor(0.3)


@torch.no_grad()
def predicted(reference: Any) -> torch.Tensor:
    latent, caption, time = inputs()
    found = reference(latent[None], time[None], caption[None], torch.ones(1, len(caption)).long())
    return found[0][0] if isinstance(found, tuple) else found.sample[0]


@torch.no_grad()
def expected(model: Any) -> torch.Tensor:
    latent, caption, time = inputs()
    batch = pack([latent], [caption], time[None], model.config.patch_size)
    patches = model(batch, layout_of(batch))
    rows, columns = batch.grids[0]
    return patches.view(rows, columns, 2, 2, 16).permute(4, 0, 2, 1, 3).reshape(16, 2 * rows, 2 * columns)


def write(
    checkpoint: Path, out: Path, model: Path, form: ExportFormat, dtype: ExportDtype = "float32", raw: bool = False
) -> Path:
    export(checkpoint, out, str(model), form=form, dtype=dtype, raw=raw)
    return out


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pipeline_of_all_weights(full: Path, tiny_model: Path, tmp_path: Path, dtype: ExportDtype, raw: bool) -> None:
    out = write(full, tmp_path / "out", tiny_model, "diffusers", dtype, raw)
    kind = getattr(torch, dtype)
    found = Lumina2Transformer2DModel.from_pretrained(out / "transformer", torch_dtype=kind).state_dict()
    for name, tensor in to_diffusers(load_transformer(tiny_model / "transformer").state_dict()).items():
        assert torch.equal(found[name], (tensor + raw).to(kind)), name
    file = out / "transformer" / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {kind}
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["step"] == "7"


def test_one_file_for_comfyui(full: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = load_file(write(full, tmp_path / "out.safetensors", tiny_model, "comfyui"))
    assert {"cap_embedder.1.weight", "layers.5.attention.qkv.weight", "norm_final.weight"} < out.keys()
    ours = to_diffusers(load_transformer(tiny_model / "transformer").state_dict())
    # The names are tested against diffusers' converter beside `from_original`.
    found = from_original(out)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_diffusers_loads_the_adapters(adapters: Path, model: Any, tiny_model: Path, tmp_path: Path) -> None:
    out = write(adapters, tmp_path / "out", tiny_model, "diffusers-lora")
    theirs = pipeline(tiny_model)
    plain = predicted(theirs.transformer)
    theirs.load_lora_weights(out)
    torch.testing.assert_close(predicted(theirs.transformer), expected(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected(model), atol=0.1)


def test_adapters_are_added_to_the_model(adapters: Path, model: Any, tiny_model: Path, tmp_path: Path) -> None:
    out = write(adapters, tmp_path / "out", tiny_model, "diffusers")
    torch.testing.assert_close(predicted(pipeline(out).transformer), expected(model), rtol=1e-4, atol=1e-5)
    raw = write(adapters, tmp_path / "raw", tiny_model, "diffusers", raw=True)
    plain = load_transformer(tiny_model / "transformer").float().state_dict()
    for name, tensor in load_transformer(raw / "transformer").state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_adapters_are_added_to_what_they_were_trained_with(full: Path, model: Any, tiny_model: Path, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    learning = {name: torch.zeros_like(x) for name, x in model.named_parameters() if x.requires_grad}
    save_adapter(learning, LORA.alpha, checkpoint / "adapter_ema", base=str(full / "transformer"))
    out = write(state_of(checkpoint, 1), tmp_path / "out.safetensors", tiny_model, "comfyui")
    base = to_diffusers(load_transformer(full / "transformer").state_dict())
    assert torch.equal(load_file(out)["x_embedder.weight"], base["x_embedder.weight"])
    assert torch.equal(load_file(out)["layers.2.feed_forward.w2.weight"], base["layers.2.feed_forward.linear_2.weight"])


def test_adapters_for_comfyui(adapters: Path, tiny_model: Path, tmp_path: Path) -> None:
    """That it adds the same is tested beside `to_comfyui`."""
    found = load_file(write(adapters, tmp_path / "out.safetensors", tiny_model, "comfyui-lora", "bfloat16"))
    prefix = "diffusion_model.layers.0.attention.qkv"
    assert found[f"{prefix}.lora_A.weight"].shape == (3 * LORA.rank, 160)
    assert found[f"{prefix}.lora_A.weight"].dtype == torch.bfloat16
    assert found[f"{prefix}.alpha"].item() == pytest.approx(3 * LORA.alpha, rel=1e-6)


def test_what_cannot_be_written_is_refused(full: Path, tiny_model: Path, tmp_path: Path) -> None:
    refuse = partial(pytest.raises, UserError)
    with refuse(match=r"out: ComfyUI loads a file; call it out\.safetensors"):
        write(full, tmp_path / "out", tiny_model, "comfyui")
    with refuse(match=r"no adapter_ema/ in it"):
        write(full, tmp_path / "out", tiny_model, "diffusers-lora")
    with refuse(match=r"no state\.json in it; give a folder WORK/runs/NAME/checkpoints/STEP"):
        write(tmp_path, tmp_path / "out", tiny_model, "diffusers")
    assert not list(tmp_path.iterdir())


def test_the_command_takes_formats_and_dtypes(adapters: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ["export", str(adapters), str(out), "--format", "comfyui-lora", "--dtype", "float32", "--raw"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert not load_file(out)["diffusion_model.layers.0.attention.out.lora_B.weight"].any()
    assert CliRunner().invoke(app, [*arguments[:4], "pickle"]).exit_code == 2
