"""The command as a user meets it: faults are a message and exit code 2, and the same command goes on behind them."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from train.audit import audit
from train.cache import store
from train.cache.manifest import CacheLayout
from train.checkpoint import all_of, newest
from train.cli import main
from train.data.loader import Step
from train.data.plan import Plan
from train.metrics import Metrics
from train.records import read

SETTINGS = (
    "steps=6",
    "batch=3",
    "checkpoints.every=1",
    "checkpoints.keep_last=9",
    "samples.every=9",
    "samples.steps=1",
    "samples.prompts=[1girl]",
)

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    def run(name: str, *overrides: str, model: Path = tiny_model) -> tuple[int, str]:
        """Exit code and stderr."""
        settings = [f"--set=train.{setting}" for setting in SETTINGS] + [f"--set={setting}" for setting in overrides]
        arguments = ["--work", str(cached), "--model", str(model), "--name", name, *settings]
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capfd.readouterr().err  # type: ignore[return-value]

    return run


def at_step(number: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Do something behind a step; the loader is reading the next one."""
    add = Metrics.add

    def acting(metrics: Metrics, step: Step, *rest: object) -> None:
        add(metrics, step, *rest)  # type: ignore[arg-type]
        if step.number == number:
            act()

    patch.setattr(Metrics, "add", acting)


def flip(path: Path, offset: int) -> None:
    """Change a bit in place."""
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 8]), offset)


def test_a_cache_that_is_damaged_while_it_is_trained_on(
    train: Train, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layout, run = CacheLayout(cached), cached / "runs" / "run"
    places = pq.read_table(layout.manifest / "latents.parquet").to_pylist()
    place = places[Plan(0, len(places), 3).step(3)[0]]  # It has not been read before.
    damaged = layout.root / place["file"]
    shutil.copy(damaged, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(1, lambda: flip(damaged, place["offset"] + place["length"] // 2), patch)
        code, said = train("run")
    assert code == 2
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for part in (str(damaged), f"row {place['row']}, image {place['image_id']}", f"where {place['crc']:08x} was"):
        assert part in line
    assert "start the same command again" in said
    assert newest(run) == all_of(run)[-1]
    assert all_of(run)[-1].name == "00000003"
    shutil.copy(tmp_path / "whole", damaged)

    latents, away = damaged.parent, tmp_path / "away"
    with monkeypatch.context() as patch:
        patch.setattr(store, "OPEN_FILES", 0)  # As of a cache of more files than are kept open.
        at_step(3, lambda: latents.rename(away), patch)
        code, said = train("run")
    assert code == 2
    assert "Traceback" not in said
    assert "row " in said
    assert "FileNotFoundError: No such file or directory, CRC " in said
    assert int(all_of(run)[-1].name) in (4, 5)
    away.rename(latents)

    assert train("run")[0] == train("whole")[0] == 0
    found, expected = (read(cached / "runs" / name / "metrics.jsonl") for name in ("run", "whole"))
    for key in "step", "samples", "loss":
        assert [record[key] for record in found] == [record[key] for record in expected]


def test_a_cache_that_was_made_otherwise_is_refused_by_its_fields(
    train: Train, cached: Path, tiny_model: Path, tmp_path: Path
):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    for part in "text_encoder", "vae":
        (weights,) = (other / part).glob("*.safetensors")
        flip(weights, weights.stat().st_size - 1)
    pipeline = cached / "pipeline.yaml"
    document = yaml.safe_load(pipeline.read_text())
    document["test"]["cache"]["prompt_prefix"] = "Draw: "
    pipeline.write_text(yaml.safe_dump(document))
    code, said = train("run", "cache.areas=[96]", model=other)
    assert code == 2
    first, *lines = said.splitlines()
    assert "not the cache this run needs; give the --model and the settings of the cache" in first
    assert [line.partition(":")[0] for line in lines] == [
        "  latents.areas",
        "  latents.weights",
        "  text.prompt_prefix",
        "  text.weights",
    ]
    assert lines[0] == "  latents.areas: expected [96], found [64]"
    assert not (cached / "runs").exists()


def test_a_refused_start_leaves_the_run_as_it_was(train: Train, cached: Path):
    assert train("run", "train.steps=2")[0] == 0
    code, said = train("run", "train.seed=5")
    assert code == 2
    assert "seed: expected 5, found 0" in said
    assert audit(cached, "run").problems == []
