"""The command as a user meets it: what goes wrong is one message, nothing is lost, and the same command goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.tiny_lumina import write_tiny_lumina
from shared.corpus import Corpus
from shared.pipelines import load
from tests.train.cache.test_cache import flip, latent_parts
from tests.train.conftest import SETTINGS as CACHE
from train import loop
from train.audit import audit
from train.cache.manifest import CacheLayout
from train.cache.reader import CacheReader
from train.cache.run import cache
from train.checkpoint import all_of, damage, newest
from train.cli import main
from train.data.loader import Step
from train.metrics import Metrics
from train.model import weights
from train.records import read
from train.run import start

SETTINGS = {
    "steps": 9,
    "batch": 5,
    "token_budget": 400,
    "samples.every": 100,
    "samples.steps": 1,
    "samples.prompts": "[1girl]",
    "checkpoints.every": 2,
    "checkpoints.keep_last": 9,
}

Train = Callable[..., tuple[int, str, str]]


def arguments(work: Path, model: Path, name: str) -> list[str]:
    overrides = [f"--set=train.{key}={value}" for key, value in SETTINGS.items()]
    return ["--work", str(work), "--model", str(model), "--name", name, *overrides]


@pytest.fixture
def train(cached: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Exit code, output and errors of the command."""

    def run(name: str, *more: str, model: Path = tiny_model) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["train", *arguments(cached, model, name), *more])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


def problem(result: tuple[int, str, str]) -> str:
    """The one message of a command that failed."""
    code, _, text = result
    assert code == 2
    assert text.startswith("error: ")
    assert "Traceback" not in text
    return text


def losses(work: Path, name: str) -> list[float]:
    return [record["loss"] for record in read(work / "runs" / name / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(cached_once: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that nothing happens to."""
    work = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(cached_once, work)
    overrides = [f"train.{key}={value}" for key, value in SETTINGS.items()]
    sections = load(work / "pipeline.yaml", overrides=overrides).sections
    start(work, str(tiny_model), "whole", sections["train"])  # type: ignore[arg-type]
    return losses(work, "whole")


def after(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """Let something happen behind a step, once."""
    add, done = Metrics.add, []

    def hooked(metrics: Metrics, step: Step, *rest: Any) -> None:
        add(metrics, step, *rest)
        if step.number == number and not done:
            done.append(do())

    monkeypatch.setattr(Metrics, "add", hooked)


@pytest.mark.parametrize("module", ["curate.cli", "train.cache.cli", "train.cli"])
def test_a_command_answers_before_pytorch_is_loaded(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cache_that_was_made_otherwise_is_refused(train: Train, tmp_path: Path):
    settings = ("--set=cache.prompt_prefix=Draw", "--set=cache.max_tokens=99")
    other = write_tiny_lumina(tmp_path / "other")
    for part in ("vae", "text_encoder"):
        config = other / part / "config.json"
        config.write_text(config.read_text() + "\n")  # Other bytes: another model, as far as anybody can tell.
    title, *lines = problem(train("run", *settings, model=other)).splitlines()
    assert "run `cache-latents` again, or give the --model and the --set that it was made with:" in title
    assert [line.split(":")[0] for line in lines] == [
        "  latents.weights",
        "  text.max_tokens",
        "  text.prompt_prefix",
        "  text.weights",
    ]
    assert lines[1] == "  text.max_tokens: expected 99, found 256"


def flip_one(work: Path) -> Path:
    """Change a byte of a latent."""
    flip(part := latent_parts(work)[1], 600)
    return part


def remove_one(work: Path) -> Path:
    part = latent_parts(work)[1]
    part.unlink()
    return part


@pytest.mark.parametrize(
    ("breaks", "sums"),
    [(flip_one, "CRC [0-9a-f]{8} where [0-9a-f]{8} was written"), (remove_one, "CRC [0-9a-f]{8} was written")],
)
def test_a_cache_that_breaks_while_it_is_trained_on(
    train: Train,
    cached: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Path], Path],
    sums: str,
    whole: list[float],
):
    broken = []
    with monkeypatch.context() as patch:
        # Files that have been opened stay readable: as if the machine had more of them than it keeps open.
        patch.setattr("train.cache.store.OPEN_FILES", 0)
        after(patch, 3, lambda: broken.append(breaks(cached)))
        text = problem(train("run"))
    assert re.search(rf"error: {re.escape(str(broken[0]))} row \d, image [0-9a-f]{{64}}: .*{sums}", text)
    assert "delete those shards, run `cache-latents`, and start the same command again" in text
    assert newest(cached / "runs" / "run") is not None
    assert "start the same command again" in problem(train("run"))
    broken[0].unlink(missing_ok=True)  # As the message says.
    cache(cached, Corpus(str(cached.parent / "pictures")), tiny_model, CACHE)
    code, output, _ = train("run")
    assert (code, "going on from" in output) == (0, True)
    assert losses(cached, "run") == whole
    assert audit(cached, "run").problems == []


def test_a_cache_that_is_not_there(train: Train, cached: Path):
    CacheLayout(cached).manifest.rename(cached / "elsewhere")
    assert "there is no finished tensor cache; run `cache-latents" in problem(train("run"))


def test_a_loader_that_stalls_is_named(
    train: Train, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    watch, latent, printed = loop.Watch, CacheReader.latent, []
    end = time.monotonic() + 60

    def stalled(reader: CacheReader, index: int) -> Any:
        while time.monotonic() < end and "waiting for the loader, step 1, for" not in "".join(printed):
            printed.append(capfd.readouterr().err)
            time.sleep(0.01)
        return latent(reader, index)

    monkeypatch.setattr(loop, "Watch", lambda rank: watch(0.05, rank))
    monkeypatch.setattr(CacheReader, "latent", stalled)
    assert train("run", "--set=train.steps=1")[0] == 0
    assert re.search(r"rank 0 on \S+: waiting for the loader, step 1, for 0\.\d+ s", "".join(printed))


def test_asked_to_stop_while_a_checkpoint_is_written(
    train: Train, cached: Path, monkeypatch: pytest.MonkeyPatch, whole: list[float]
):
    save = weights.save_file

    def asked(tensors: Any, file: Path, **keywords: Any) -> None:
        save(tensors, file, **keywords)
        if ".00000004" in str(file) and file.parent.name == "transformer":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", asked)
        code, output, _ = train("run")
    (done,) = re.findall(r"asked to stop after step (\d)", output)
    run = cached / "runs" / "run"
    assert code == 0
    assert [int(path.name) for path in all_of(run)] == sorted({2, 4, *range(6, int(done), 2), int(done)})
    assert newest(run) == all_of(run)[-1]
    assert train("run")[0] == 0
    assert losses(cached, "run") == whole


def test_a_truncated_checkpoint_is_passed_over_and_written_anew(train: Train, cached: Path, whole: list[float]):
    assert train("run", "--set=train.steps=4")[0] == 0
    last = newest(cached / "runs" / "run")
    assert last is not None
    os.truncate(last / "optimizer" / "optimizer.safetensors", 1000)
    code, output, _ = train("run")
    assert (code, f"{last}: passed over, optimizer/optimizer.safetensors has 1,000 of" in output) == (0, True)
    assert damage(last) == ""
    assert losses(cached, "run") == whole


STUCK = """
import sys, time
from train.cli import main
from train.model import weights
save = weights.save_file
def stuck(tensors, file, **keywords):
    save(tensors, file, **keywords)
    while ".00000004" in str(file):
        time.sleep(0.1)
weights.save_file = stuck
main()
"""
"""The command, with a disk that takes for ever to write the checkpoint of step 4."""


def test_killed_by_a_second_signal_while_a_checkpoint_is_written(
    train: Train, cached: Path, tiny_model: Path, whole: list[float]
):
    run = cached / "runs" / "run"
    with subprocess.Popen([sys.executable, "-c", STUCK, *arguments(cached, tiny_model, "run")]) as process:
        while not list(run.glob("checkpoints/.00000004/transformer/*")):
            assert process.poll() is None
            time.sleep(0.05)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:  # Of the first it takes note.
            process.terminate()
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGTERM
    assert [path.name for path in all_of(run)] == ["00000002"]
    code, output, _ = train("run")
    assert (code, f"going on from {run / 'checkpoints' / '00000002'}" in output.replace("\n", "")) == (0, True)
    assert not list(run.glob("checkpoints/.*"))
    assert losses(cached, "run") == whole
