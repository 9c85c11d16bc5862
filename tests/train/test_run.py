"""What a run starts from, and what of it learns: to its last checkpoint, and out of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline
from safetensors.torch import load_file

from shared.errors import UserError
from train.cache.reader import CacheReader
from train.export import write
from train.model.names import to_diffusers
from train.model.weights import load_state, load_transformer, save_transformer
from train.records import read
from train.run import build_model, start
from train.settings import CheckpointSettings, LoraSettings, OptimizerSettings, SampleSettings, TrainSettings

SETTINGS = TrainSettings(
    steps=2,
    batch=3,
    token_budget=400,
    optimizer=OptimizerSettings(learning_rate=1e-2),
    samples=SampleSettings(every=100, steps=1, prompts=("1girl",)),
    checkpoints=CheckpointSettings(every=1),
)
LORA = LoraSettings(rank=2, alpha=4.0, targets=("attention",))

Train = Callable[..., Path]


@pytest.fixture
def train(cached: Path, tiny_model: Path) -> Train:
    def run(name: str, **changes: object) -> Path:
        start(cached, str(tiny_model), name, SETTINGS.model_copy(update=changes))
        return cached / "runs" / name

    return run


@pytest.fixture
def build(cached_once: Path, tiny_model: Path) -> Callable[..., Any]:
    reader = CacheReader(cached_once)
    return lambda **changes: build_model(tiny_model, SETTINGS.model_copy(update=changes), reader)


def test_adapters_go_on_as_if_never_stopped(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    whole = train("whole", lora=LORA)
    train("cut", lora=LORA, steps=1)
    cut = train("cut", lora=LORA)
    losses = [[record["loss"] for record in read(run / "metrics.jsonl")] for run in (whole, cut)]
    assert losses[0] == losses[1]
    last = "checkpoints/00000002"
    for part in ("adapter", "adapter_ema"):
        file = f"{last}/{part}/adapter_model.safetensors"
        assert (whole / file).read_bytes() == (cut / file).read_bytes()
    assert not list((whole / last).glob("transformer*"))
    optimizer = load_file(whole / last / "optimizer" / "optimizer.safetensors")
    assert {name.split("/")[0].rpartition(".")[2] for name in optimizer} == {"lora_A", "lora_B"}
    write(whole / last, tmp_path / "out", str(tiny_model), form="diffusers-lora", dtype="float32", raw=True)
    pipeline = Lumina2Pipeline.from_pretrained(tiny_model)
    pipeline.load_lora_weights(tmp_path / "out")
    loaded = load_file(whole / last / "adapter" / "adapter_model.safetensors")
    name = "layers.0.attn.to_v.lora_B"
    found = pipeline.transformer.get_parameter(f"{name}.default_0.weight")
    assert found.any()
    assert torch.equal(found, loaded[f"base_model.model.{name}.weight"])


def test_frozen_parts_are_in_the_checkpoint_as_they_were(train: Train, tiny_model: Path) -> None:
    train("run", freeze=("text", "layers.0-4"), steps=1)
    run = train("run", freeze=("text", "layers.0-4"))
    prefixes = ("context_refiner", "time_caption_embed.caption", *(f"layers.{index}." for index in range(5)))
    before = to_diffusers(load_transformer(tiny_model / "transformer").state_dict())
    raw, averaged = (load_state(run / "checkpoints/00000002" / part) for part in ("transformer", "transformer_ema"))
    for name, tensor in before.items():
        frozen = name.startswith(prefixes)
        assert torch.equal(raw[name], tensor.float()) == frozen, name
        assert torch.equal(averaged[name], raw[name]) == frozen, name


def test_parts_learn_at_rates_of_their_own(train: Train, tiny_model: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=1e-2, rates={"text": 0.1})
    run = train("run", optimizer=optimizer, steps=1)
    before = to_diffusers(load_transformer(tiny_model / "transformer").float().state_dict())
    after = load_state(run / "checkpoints/00000001/transformer")
    for name, tensor in before.items():
        is_text = name.startswith(("context_refiner", "time_caption_embed.caption"))
        # The first step of AdamW is as long as the rate, of every number that has a gradient.
        assert (after[name] - tensor).abs().max().item() == pytest.approx(1e-3 if is_text else 1e-2, rel=0.01), name


def test_a_run_starts_from_other_weights(build: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    model = load_transformer(tiny_model / "transformer")
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_transformer(other, model.config, tmp_path / "other")
    found = build(weights=str(tmp_path / "other")).state_dict()
    assert all(torch.equal(found[name], other[name].float()) for name in other)
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(UserError, match="neither a folder nor"):
        build(weights=str(tmp_path / "other"))


def test_adapters_start_from_a_file(train: Train, build: Callable[..., Any]) -> None:
    folder = train("run", lora=LORA, steps=1) / "checkpoints/00000001/adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    found = build(lora=LORA.model_copy(update={"init": str(folder)}))
    expected = weights["base_model.model.layers.2.attn.to_out.0.lora_B.weight"]
    assert torch.equal(found.get_parameter("layers.2.attn.to_out.0.lora_B"), expected)
    with pytest.raises(UserError, match=r"of rank 2, are not those of train\.lora"):
        build(lora=LORA.model_copy(update={"init": str(folder), "rank": 4}))


@pytest.mark.parametrize(
    "changes",
    [
        {"init": "random", "weights": "somewhere"},
        {"lora": LORA, "freeze": ("text",)},
        {"lora": LORA, "precision": "float8"},
        {"lora": LORA, "masters": "bfloat16"},
    ],
)
def test_settings_that_exclude_one_another_are_refused(build: Callable[..., Any], changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="exclude one another"):
        build(**changes)
