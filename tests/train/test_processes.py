"""Processes, killed and asked to stop: the same samples and losses as of one left alone, at any number of them."""

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from accelerate import Accelerator

from shared.errors import UserError
from shared.pipelines import load
from train.audit import audit
from train.checkpoint import all_of, newest
from train.model.weights import load_state
from train.records import read
from train.run import start
from train.settings import TrainSettings

STEPS = 6
SETTINGS = {
    "steps": STEPS,
    "batch": 7,  # Of 11 pictures: epochs end within the steps 1, 3 and 4.
    "token_budget": 60,
    "optimizer.learning_rate": 1e-3,
    "samples.every": 100,
    "samples.steps": 1,
    "samples.prompts": "[1girl]",
    "checkpoints.every": 1,
    "checkpoints.keep_last": STEPS,
}


class Launched(NamedTuple):
    """Ranks at work."""

    forker: "subprocess.Popen[bytes]"
    ranks: list[int]
    output: Path
    mark: Path

    def wait(self) -> list[int]:
        """The exit codes of all."""
        return answer(self.forker)

    def hold(self) -> None:
        """Until a checkpoint is half written, and stays so."""
        while not self.mark.exists():
            ended, *_ = select.select([self.forker.stdout], [], [], 0.02)
            assert not ended, self.output.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        for rank in self.ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, number)


Launch = Callable[..., Launched]


def answer(forker: "subprocess.Popen[bytes]") -> list[int]:
    assert forker.stdout
    numbers: list[int] = json.loads(forker.stdout.readline())
    return numbers


@pytest.fixture(scope="module")
def forker() -> "Iterator[subprocess.Popen[bytes]]":
    """The process that forks ranks. They talk over gloo."""
    command = [sys.executable, "-m", "tests.train.serve"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    ) as process:
        yield process


@pytest.fixture
def launch(forker: "subprocess.Popen[bytes]", cached: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Launch]:
    """Start ranks, which are held while they write the checkpoint of a step."""
    started: list[Launched] = []

    def run(name: str, count: int, held: int, **changes: object) -> Launched:
        output, mark = tmp_path / f"output-{len(started)}", tmp_path / f"mark-{len(started)}"
        overrides = [f"--set=train.{key}={value}" for key, value in (SETTINGS | changes).items()]
        request = {
            "count": count,
            "port": free_port(),
            "output": str(output),
            "hold": (f".{held:08}", str(mark)),
            "arguments": ["--work", str(cached), "--model", str(tiny_model), "--name", name, *overrides],
        }
        assert forker.stdin
        forker.stdin.write(json.dumps(request).encode() + b"\n")
        started.append(Launched(forker, answer(forker), output, mark))
        return started[-1]

    yield run
    for launched in started:
        launched.kill()


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def finish(work: Path, model: Path, name: str, **changes: object) -> Path:
    """Train in this process, alone, to the end."""
    overrides = [f"train.{key}={value}" for key, value in (SETTINGS | changes).items()]
    settings: Any = load(work / "pipeline.yaml", overrides=overrides).sections["train"]
    start(work, str(model), name, settings)
    return work / "runs" / name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cached_once: Path, tiny_model: Path) -> Path:
    """A run that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(cached_once.parent, folder, dirs_exist_ok=True)
    return finish(folder / cached_once.name, tiny_model, "alone")


def assert_same(run: Path, alone: Path) -> None:
    """Samples are identical; losses, gradients and weights up to the order of summation."""
    found, expected = (read(one / "metrics.jsonl") for one in (run, alone))
    assert [record["step"] for record in expected] == list(range(STEPS))
    for key in "step", "samples", "epoch":
        assert [record[key] for record in found] == [record[key] for record in expected]
    for key in "loss", "loss_pooled", "grad_norm":
        assert [record[key] for record in found] == pytest.approx([record[key] for record in expected], rel=1e-4)
    parts, whole = (load_state(one / f"checkpoints/{STEPS:08}/transformer_ema") for one in (run, alone))
    for name, tensor in whole.items():
        # One by one they may be a step apart: AdamW makes a step of a gradient that is nothing but rounding.
        assert (parts[name] - tensor).abs().mean() < 1e-5
    audited = audit(run.parents[1], run.name)
    assert (audited.steps, audited.samples, audited.problems) == (STEPS, 7 * STEPS, [])
    assert audited.most - audited.fewest <= 1


def test_killed_twice_and_gone_on_with_other_processes_and_micro_batches(
    launch: Launch, cached: Path, tiny_model: Path, alone: Path
):
    run, first, second = cached / "runs" / "killed", random.choice((2, 3)), random.choice((4, 5))
    four = launch("killed", 4, held=first)
    four.hold()
    four.kill()
    assert four.wait() == [-signal.SIGKILL] * 4
    assert newest(run) == all_of(run)[first - 2], "the checkpoint before the one that was being written"

    two = launch("killed", 2, held=second, token_budget=25, recompute="everything")
    two.hold()
    os.kill(two.ranks[1], signal.SIGKILL)
    code, killed = two.wait()
    assert (code, killed) == (2, -signal.SIGKILL)
    printed = two.output.read_text()
    assert f"going on from {all_of(run)[first - 2]}" in printed
    assert "rank 0: another of the 2 processes is gone" in printed
    assert "Start the same command again: it goes on from the newest checkpoint" in printed
    assert "Traceback" not in printed
    assert len(all_of(run)) == second - 1

    assert_same(finish(cached, tiny_model, "killed", token_budget=10_000), alone)


def test_asked_to_stop_while_a_checkpoint_is_written(launch: Launch, cached: Path, tiny_model: Path, alone: Path):
    run = cached / "runs" / "asked"
    impatient = launch("asked", 1, held=2)
    impatient.hold()
    while not select.select([impatient.forker.stdout], [], [], 0.1)[0]:
        impatient.kill(signal.SIGTERM)
    assert impatient.wait() == [-signal.SIGTERM]
    assert [path.name for path in all_of(run)] == ["00000001"], "half a checkpoint has no name"
    assert newest(run) == all_of(run)[0]

    patient = launch("asked", 1, held=3)
    patient.hold()
    patient.kill(signal.SIGTERM)
    patient.mark.unlink()
    assert patient.wait() == [0]
    asked = int(all_of(run)[-1].name)
    assert 3 < asked < STEPS
    assert f"asked to stop after step {asked}; start the same command again to go on" in patient.output.read_text()
    assert [int(path.name) for path in all_of(run)] == list(range(1, asked + 1))

    assert_same(finish(cached, tiny_model, "asked"), alone)
    assert not list((run / "checkpoints").glob(".*"))


def test_more_processes_than_samples_are_refused(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 9))
    with pytest.raises(UserError, match=r"train\.batch = 8: must be at least 9"):
        start(cached, str(tiny_model), "few", TrainSettings(batch=8))
