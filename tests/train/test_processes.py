"""Several processes train as one does: the same samples, the same losses, at any number, changed at any checkpoint."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator

from shared.errors import UserError
from shared.pipelines import load
from train.records import read
from train.run import start
from train.settings import TrainSettings

SETTINGS = {
    "steps": 6,
    "batch": 7,
    "token_budget": 60,
    "optimizer.learning_rate": 1e-3,
    "samples.every": 100,
    "samples.steps": 1,
    "samples.prompts": "[1girl]",
    "checkpoint_every": 3,
}

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(cached: Path, tiny_model: Path) -> Launch:
    """Run the command with a number of processes, which talk over gloo."""

    def run(name: str, processes: int, **changes: object) -> subprocess.CompletedProcess[str]:
        overrides = [f"--set=train.{key}={value}" for key, value in (SETTINGS | changes).items()]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        command += [str(Path(sys.executable).with_name("train")), "--work", str(cached), "--model", str(tiny_model)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, "--name", name, *overrides],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            check=False,
        )

    return run


def test_as_many_processes_as_one_likes(launch: Launch, cached: Path, tiny_model: Path):
    settings = load(cached / "pipeline.yaml", overrides=[f"train.{key}={value}" for key, value in SETTINGS.items()])
    train = partial(start, cached, str(tiny_model), settings=settings.sections["train"])
    train("alone")
    done = launch("changing", 3, steps=3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 3 x cpu" in done.stdout
    train("changing")
    alone, changing = (read(cached / "runs" / name / "metrics.jsonl") for name in ("alone", "changing"))
    assert [record["step"] for record in alone] == list(range(6))
    for key in "step", "samples":
        assert [record[key] for record in changing] == [record[key] for record in alone]
    for key in "loss", "grad_norm":
        assert [record[key] for record in changing] == pytest.approx([record[key] for record in alone], rel=1e-4)


def test_more_processes_than_samples_are_refused(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 9))
    with pytest.raises(UserError, match=r"train\.batch = 8: must be at least 9"):
        start(cached, str(tiny_model), "few", TrainSettings(batch=8))
