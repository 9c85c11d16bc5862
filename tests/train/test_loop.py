"""Training: the same numbers however it is cut and interrupted, and weights that others can use."""

import io
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.corpus import Corpus
from shared.errors import UserError
from train import loop
from train.audit import audit
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.cache.settings import CacheSettings
from train.checkpoint import all_of
from train.data.loader import Step
from train.data.plan import Plan
from train.export import write
from train.metrics import Metrics
from train.model import weights
from train.model.weights import load_state, load_transformer
from train.records import read
from train.run import start
from train.settings import (
    CheckpointSettings,
    GuardSettings,
    LoraSettings,
    OptimizerSettings,
    PhaseSettings,
    SampleSettings,
    TrainSettings,
    ValidationSettings,
)
from train.signals import SIGNALS
from train.validation import Validation
from train.watch import Watch

SETTINGS = TrainSettings(
    steps=6,
    batch=5,
    token_budget=400,
    optimizer=OptimizerSettings(learning_rate=1e-3, warmup=2),
    samples=SampleSettings(every=4, steps=2, prompts=("1girl", "blue hair")),
    log_every=2,
    checkpoints=CheckpointSettings(every=2),
)

Train = Callable[..., Path]


@pytest.fixture
def train(cached: Path, tiny_model: Path) -> Train:
    def run(name: str, **changes: object) -> Path:
        start(cached, str(tiny_model), name, SETTINGS.model_copy(update=changes))
        return cached / "runs" / name

    return run


def losses(run: Path) -> list[float]:
    records = read(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss"] for record in records]


@pytest.fixture
def _eager() -> Iterator[None]:
    """torchao compiles its step for every shape, which takes minutes on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(("states", "masters"), [("float32", "float32"), ("int8", "bfloat16")])
@pytest.mark.usefixtures("_eager")
def test_interrupted_equals_uninterrupted(train: Train, states: str, masters: str):
    optimizer = OptimizerSettings(learning_rate=1e-3, warmup=2, states=states, weight_decay=0.1)  # type: ignore[arg-type]
    train = partial(train, optimizer=optimizer, masters=masters)
    whole = train("whole")
    train("cut", steps=2)
    shutil.rmtree(whole.parent / "cut" / "samples")
    # As if it had been killed behind the checkpoint: a record too many, and one cut off.
    with (whole.parent / "cut" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "loss": 9.0}) + '\n{"step": 3, "lo')
    train("cut", steps=4)
    cut = train("cut")
    assert losses(cut) == losses(whole)
    assert [r["samples"] for r in read(cut / "metrics.jsonl")] == [r["samples"] for r in read(whole / "metrics.jsonl")]
    for file in ("transformer", "transformer_ema"):
        name = f"checkpoints/00000006/{file}/diffusion_pytorch_model.safetensors"
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
        stored = {tensor.dtype for tensor in load_file(whole / name).values()}
        assert stored == {torch.float32 if file == "transformer_ema" else getattr(torch, masters)}


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_interrupted_equals_uninterrupted_with_all_that_a_run_may_have(
    curated: Path, tiny_model: Path, lora: LoraSettings | None, monkeypatch: pytest.MonkeyPatch
):
    cache(curated, Corpus(str(curated.parent / "pictures")), tiny_model, CacheSettings(areas=(32, 64), shard_rows=4))
    changes = {
        "phases": (
            PhaseSettings(areas=(32,), balance="1 + len(captions)"),
            PhaseSettings(first=2, areas=(32, 64), balance="1 + len(captions)", learning_rate=3e-3),
            PhaseSettings(first=4, where="len(captions) > 0"),
        ),
        "loss_weight": "1 + len(captions)",
        "pooled_loss": 0.5,
        "captions": {"tags": 3.0},
        "caption_dropout": 0.3,
        "lora": lora,
        "freeze": () if lora else ("text", "layers.0-2"),
        "optimizer": OptimizerSettings(learning_rate=1e-3, warmup=1, schedule="cosine", weight_decay=0.1),
        "guard": GuardSettings(norm_factor=1.01, window=1),
        "validation": ValidationSettings(share=0.4, every=2, times=2),
        "checkpoints": CheckpointSettings(every=1),
        "samples": SampleSettings(every=9, steps=1, prompts=("1girl",)),
    }
    settings = SETTINGS.model_copy(update=changes)
    for name, stops in ("whole", ()), ("cut", (1, 3, 4)):
        for stop in stops:
            with monkeypatch.context() as patch:
                patch.setattr(Metrics, "add", partialmethod(interrupted, Metrics.add, stop))
                with pytest.raises(KeyboardInterrupt):
                    start(curated, str(tiny_model), name, settings)
        start(curated, str(tiny_model), name, settings)
    whole, cut = curated / "runs" / "whole", curated / "runs" / "cut"
    assert losses(cut) == losses(whole)
    for file in "skipped.jsonl", "validation.jsonl":
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
        assert read(whole / file)
    for file in (whole / "checkpoints/00000006").rglob("*.safetensors"):
        assert (cut / file.relative_to(whole)).read_bytes() == file.read_bytes()


def interrupted(metrics: Metrics, add: Callable[..., None], stop: int, step: Step, *rest: Any) -> None:
    if step.number == stop:
        raise KeyboardInterrupt
    add(metrics, step, *rest)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(
    train: Train, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    add, handlers = Metrics.add, [signal.getsignal(one) for one in SIGNALS]

    def asking(metrics: Metrics, step: Step, *rest: Any) -> None:
        add(metrics, step, *rest)
        if step.number == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "add", asking)
        run = train("run")
    assert "asked to stop after step 3; start the same command again to go on" in capsys.readouterr().out
    assert not (run / "plot.png").exists(), "the machine may be gone in a moment"
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
    assert [path.name for path in all_of(run)] == ["00000002", "00000003"]
    train("run")
    assert losses(run) == losses(train("whole"))


def test_a_loader_that_stalls_is_named(train: Train, monkeypatch: pytest.MonkeyPatch):
    latent, printed, named, end = CacheReader.latent, io.StringIO(), "waiting for the loader, step 1, for ", []

    def stalling(reader: CacheReader, index: int) -> torch.Tensor:
        end.append(time.monotonic() + 10)
        while named not in printed.getvalue() and time.monotonic() < end[0]:
            time.sleep(0.01)
        return latent(reader, index)

    monkeypatch.setattr(sys, "stderr", printed)
    monkeypatch.setattr(loop, "Watch", partial(Watch, 0.1))
    monkeypatch.setattr(CacheReader, "latent", stalling)
    assert len(losses(train("run", steps=1))) == 1
    assert named in printed.getvalue()


def test_a_checkpoint_that_cannot_be_written_stops_the_run(train: Train, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        train("run")


def test_a_picture_that_spoils_a_step_is_named_and_not_learned(
    train: Train, cached: Path, monkeypatch: pytest.MonkeyPatch
):
    latent, broken = CacheReader.latent, 4
    monkeypatch.setattr(
        CacheReader, "latent", lambda reader, index: latent(reader, index) * (math.nan if index == broken else 1)
    )
    run = train("run")
    reader, plan = CacheReader(cached), Plan(0, 11, 5)
    spoilt = [step for step in range(6) if broken in plan.step(step)]
    assert 0 < len(spoilt) < 6
    records = read(run / "skipped.jsonl")
    assert [(record["step"], record["reason"]) for record in records] == [
        (step, "loss is not finite: nan") for step in spoilt
    ]
    assert records[0]["image_ids"] == [reader.image_id(int(index)) for index in plan.step(spoilt[0])]
    assert [record["step"] for record in read(run / "metrics.jsonl") if record["loss"] is None] == spoilt
    for name in ("transformer", "transformer_ema"):
        assert all(tensor.isfinite().all() for tensor in load_state(run / "checkpoints/00000006" / name).values())


def test_pictures_held_out_are_looked_at_and_never_learned(train: Train, cached: Path):
    validation = ValidationSettings(share=0.4, every=4, times=2)
    run = train("run", validation=validation)
    found = read(run / "validation.jsonl")
    assert [record["step"] for record in found] == [3, 5]
    model = load_transformer(run / "checkpoints/00000006/transformer_ema")
    settings = SETTINGS.model_copy(update={"validation": validation})
    sums = Validation(CacheReader(cached), settings, model.config).sums(model)
    assert found[1]["by_time"] == pytest.approx((sums[0] / sums[1])[0].tolist())
    assert audit(cached, "run").problems == []


def test_an_audit_finds_steps_that_are_not_as_planned(train: Train, cached: Path):
    metrics = train("run") / "metrics.jsonl"
    found = audit(cached, "run")
    assert (found.steps, found.samples, found.problems) == (6, 30, [])
    # 30 samples of 11 pictures.
    assert (found.fewest, found.most) == (2, 3)
    lines = metrics.read_text().splitlines(keepends=True)
    other = json.loads(lines[4]) | {"samples": json.loads(lines[3])["samples"]}
    metrics.write_text("".join([*lines[:4], json.dumps(other) + "\n", *lines[5:]]))
    (problem,) = audit(cached, "run").problems
    assert problem.startswith("step 4: saw samples of receipt")
    metrics.write_text("".join(lines[:2] + lines[3:]))
    assert audit(cached, "run").problems[0] == "line 3 of metrics.jsonl: step 3 where 2 belongs"
    with pytest.raises(UserError, match="--name"):
        audit(cached, "another")


def test_micro_batches_and_recomputation_do_not_change_the_losses(train: Train):
    whole = losses(train("whole", token_budget=10_000))
    assert losses(train("cut", token_budget=1)) == pytest.approx(whole, rel=1e-4)
    assert losses(train("recomputed", token_budget=10_000, recompute="everything")) == pytest.approx(whole, rel=1e-5)
    assert losses(train("other", seed=1)) != pytest.approx(whole, rel=1e-2)


def test_it_learns(train: Train):
    run = train("longer", steps=40, batch=11, caption_dropout=0.0, checkpoints=CheckpointSettings(every=40))
    values = losses(run)
    assert sum(values[-8:]) < 0.8 * sum(values[:8])


def test_what_a_run_says(train: Train, capsys: pytest.CaptureFixture[str]):
    train(
        "run",
        steps=5,
        checkpoints=CheckpointSettings(every=3),
        samples=SETTINGS.samples.model_copy(update={"every": 9}),
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["2/5", "3/5", "4/5", "5/5"]


def test_what_a_run_leaves(train: Train):
    run = train("run")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["00000002", "00000004", "00000006"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000004.png", "step-00000006.png"]
    with Image.open(run / "samples" / "step-00000006.png") as grid:
        assert grid.width > 64
    with Image.open(run / "plot.png") as picture:
        assert picture.width > 1000
    assert list((run / "tensorboard").iterdir())
    record = read(run / "metrics.jsonl")[-1]
    assert {"loss", "grad_norm", "images_per_second", "share_of_peak", "samples", "learning_rate"} <= record.keys()
    raw = Lumina2Transformer2DModel.from_pretrained(run / "checkpoints/00000006/transformer")
    averaged = Lumina2Transformer2DModel.from_pretrained(run / "checkpoints/00000006/transformer_ema")
    assert not torch.equal(raw.x_embedder.weight, averaged.x_embedder.weight)


def test_learning_rate_rises_over_the_warmup(train: Train):
    rates = [record["learning_rate"] for record in read(train("run") / "metrics.jsonl")]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3, 1e-3])


def test_phases_to_come_and_learning_rates_may_change(train: Train, cached: Path):
    train("run", steps=2)
    phases = (PhaseSettings(learning_rate=1e-4), PhaseSettings(first=4, where="len(captions) > 0"))
    run = train("run", phases=phases)
    assert [record["learning_rate"] for record in read(run / "metrics.jsonl")][2:4] == pytest.approx([1e-4, 1e-4])
    assert audit(cached, "run").problems == []


def test_exported_folder_draws_through_diffusers(train: Train, tiny_model: Path, tmp_path: Path):
    run = train("run", steps=2)
    checkpoint = run / "checkpoints/00000002"
    write(checkpoint, tmp_path / "out", str(tiny_model), form="diffusers", dtype="float32", raw=False)
    pipeline = Lumina2Pipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("1girl, blue hair", num_inference_steps=2, height=64, width=80).images[0]
    assert drawn.size == (80, 64)
    averaged = Lumina2Transformer2DModel.from_pretrained(run / "checkpoints/00000002/transformer_ema")
    assert torch.equal(pipeline.transformer.x_embedder.weight, averaged.x_embedder.weight)
    with pytest.raises(UserError, match="checkpoints/STEP"):
        write(run, tmp_path / "no", str(tiny_model), form="diffusers", dtype="float32", raw=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 5}, "seed"),
        ({"batch": 3}, "batch"),
        ({"validation": ValidationSettings(share=0.4)}, "pictures"),
        ({"phases": (PhaseSettings(where="len(captions) > 0"),)}, "pictures"),
    ],
)
def test_a_run_does_not_go_on_with_other_samples(train: Train, cached: Path, change: dict[str, object], field: str):
    train("run", steps=2)
    with pytest.raises(UserError, match=f"{field}: expected"):
        train("run", **change)
    assert audit(cached, "run").problems == []  # The settings that were refused are not taken for the run's.


def test_sizes_that_are_no_multiple_are_refused_before_training(train: Train):
    with pytest.raises(UserError, match=r"multiples of 16, .* take 96x96 or 112x96"):
        train("run", samples=SampleSettings(sizes=("100x96",)))
