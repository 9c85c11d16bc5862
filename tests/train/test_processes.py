"""Several processes train as one does: the same samples, the same losses, at any number, changed at any checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from shared.errors import UserError
from shared.pipelines import load
from train.audit import audit
from train.checkpoint import newest
from train.model.weights import load_state
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
    "checkpoints.every": 2,
}

FORKED = [sys.executable, str(Path(__file__).with_name("forked.py"))]
LAUNCHED = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(cached: Path, tiny_model: Path) -> Iterator[Launch]:
    """Start processes, which talk over gloo."""
    started = []

    def run(command: list[str], name: str, **changes: object) -> subprocess.Popen[str]:
        overrides = [f"--set=train.{key}={value}" for key, value in {**SETTINGS, **changes}.items()]
        process = subprocess.Popen(
            [*command, "--work", str(cached), "--model", str(tiny_model), "--name", name, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "LAUNCH": str(cached), "ACCELERATE_USE_CPU": "1"},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with process:
            kill(cached)


def kill(work: Path, *marks: str) -> None:
    """All processes that were launched for a work directory, or those with such entries in their environment besides,
    without a warning."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if {f"LAUNCH={work}", *marks} <= set((folder / "environ").read_text().split("\0")):
                os.kill(int(folder.name), signal.SIGKILL)


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def records(cached: Path, name: str) -> list[dict[str, Any]]:
    return read(cached / "runs" / name / "metrics.jsonl")


def test_killed_twice_across_epochs_and_gone_on_with_other_processes_micro_batches_and_recomputation(
    launch: Launch, cached: Path, tiny_model: Path
):
    settings = load(cached / "pipeline.yaml", overrides=[f"train.{key}={value}" for key, value in SETTINGS.items()])
    train = partial(start, cached, str(tiny_model), settings=settings.sections["train"])
    train("alone")
    checkpoints = cached / "runs" / "killed" / "checkpoints"
    cuts = (
        (4, 2, {"token_budget": 1, "recompute": "everything"}),
        (2, 4, {"token_budget": 150, "recompute": "cheap"}),
    )
    for processes, step, changes in cuts:  # 11 pictures, 7 in a step: epochs end within the steps 1, 3 and 4.
        process = launch([*FORKED, str(processes), free_port()], "killed", **changes)
        wait_for(process, checkpoints / f"{step:08}")
        kill(cached)
        process.wait()
    assert (checkpoints / "00000004" / "optimizer" / "optimizer-00002-of-00002.safetensors").exists()
    train("killed")
    found = audit(cached, "killed")
    assert (found.steps, found.samples, found.fewest, found.most, found.problems) == (6, 42, 3, 4, [])
    alone, killed = records(cached, "alone"), records(cached, "killed")
    assert [record["step"] for record in alone] == list(range(SETTINGS["steps"]))
    for key in "step", "samples":
        assert [record[key] for record in killed] == [record[key] for record in alone]
    for key in "loss", "loss_pooled", "grad_norm":
        assert [record[key] for record in killed] == pytest.approx([record[key] for record in alone], rel=1e-4)
    whole, parts = (
        load_state(cached / "runs" / name / "checkpoints" / "00000006" / "transformer_ema")
        for name in ("alone", "killed")
    )
    for name, tensor in whole.items():
        # One by one they may be a step apart: AdamW makes a step of a gradient that is nothing but rounding.
        assert (parts[name] - tensor).abs().mean() < 1e-5


def test_one_of_two_ranks_dies(launch: Launch, cached: Path):
    process = launch([*LAUNCHED, str(Path(sys.executable).with_name("train"))], "torn")
    wait_for(process, cached / "runs" / "torn" / "checkpoints" / "00000002")
    kill(cached, "RANK=1")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 0: another of the 2 processes is gone" in printed
    assert "Start the same command again: it goes on from the newest checkpoint" in printed
    assert newest(cached / "runs" / "torn") is not None


def test_more_processes_than_samples_are_refused(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 9))
    with pytest.raises(UserError, match=r"train\.batch = 8: must be at least 9"):
        start(cached, str(tiny_model), "few", TrainSettings(batch=8))
