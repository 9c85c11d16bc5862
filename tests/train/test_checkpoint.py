"""Checkpoints: whole or passed over, of any number of ranks, and as the weights were when training went on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.errors import UserError
from tests.train.model.support import random_model
from train import checkpoint, checkpoint_writer
from train.checkpoint import Learner, State
from train.checkpoint_writer import CheckpointWriter
from train.ema import Ema
from train.model import weights
from train.optimizer import adamw, state_tensors
from train.precision import owners
from train.settings import CheckpointSettings, OptimizerSettings, TrainSettings
from train.trained import Trained

SETTINGS = TrainSettings()


def state(step: int) -> State:
    return checkpoint.state_of(step, SETTINGS, "cache")


def learner(seed: int, rank: int = 0, ranks: int = 1) -> Learner:
    """What one rank has after a step."""
    torch.manual_seed(seed)
    model = random_model()
    share = owners({name: weight.numel() for name, weight in model.named_parameters()}, ranks)
    owned = {name: weight for name, weight in model.named_parameters() if share[name] == rank}
    optimizer, ema = adamw(owned, OptimizerSettings()), Ema(owned, 0.9)
    for weight in owned.values():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    ema.update(0)
    return Learner(Trained(model, SETTINGS), owned, ema, optimizer)


def writer(run: Path, one: Learner, rank: int = 0, ranks: int = 1, **settings: Any) -> CheckpointWriter:
    together: Any = SimpleNamespace(rank=rank, count=ranks, wait=lambda: None)
    return CheckpointWriter(run, CheckpointSettings(**settings), one, together)


def saved(run: Path, *steps: int) -> Path:
    """Checkpoints of these steps; returns the last."""
    checkpoints = writer(run, learner(0), keep_last=len(steps))
    for step in steps:
        checkpoints.save(state(step), {})
    checkpoints.wait()
    return checkpoint.path_of(run, steps[-1])


def everything(one: Learner) -> dict[str, torch.Tensor]:
    tensors = {**one.weights, **{f"{name}/ema": x for name, x in one.ema.average.items()}}
    return {name: x.detach() for name, x in tensors.items()} | state_tensors(one.weights, one.optimizer)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("ranks", "readers"), [(1, 1), (3, 1), (2, 3)])
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path: Path, ranks: int, readers: int) -> None:
    writers = [writer(tmp_path, learner(0, rank, ranks), rank, ranks) for rank in range(ranks)]
    for one in writers:
        one.save(state(5), {})
    for one in writers:
        one.wait()
    path = checkpoint.path_of(tmp_path, 5)
    assert checkpoint.newest(tmp_path) == path
    for rank in range(readers):
        expected, restored = learner(0, rank, readers), learner(1, rank, readers)
        assert not equal(everything(restored), everything(expected))
        restored.restore(path)
        if readers == ranks:
            assert equal(everything(restored), everything(expected))
        assert equal(dict(restored.weights), {name: learner_weights(ranks)[name] for name in restored.weights})
    theirs = Lumina2Transformer2DModel.from_pretrained(path / "transformer")
    ours = weights.load_state(path / "transformer")
    assert equal(dict(theirs.state_dict()), ours)


def learner_weights(ranks: int) -> dict[str, torch.Tensor]:
    """The weights of all ranks of `learner(0)`."""
    return {name: x for rank in range(ranks) for name, x in learner(0, rank, ranks).weights.items()}


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(0)
    before = {name: x.clone() for name, x in everything(one).items()}
    begun, real = [], weights.save_file

    def slow(*arguments: Any, **keywords: Any) -> None:
        while not begun:
            pass
        real(*arguments, **keywords)

    monkeypatch.setattr(weights, "save_file", slow)
    checkpoints = writer(tmp_path, one)
    checkpoints.save(state(1), {})
    with torch.no_grad():
        for tensor in everything(one).values():
            tensor.add_(1)
    begun.append(True)
    checkpoints.wait()
    one.restore(checkpoint.path_of(tmp_path, 1))
    assert equal(everything(one), before)


def flip(path: Path) -> None:
    file = path / "optimizer" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)


def truncate(path: Path) -> None:
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "optimizer/optimizer.safetensors has other bytes": flip,
    "transformer/diffusion_pytorch_model.safetensors has .* of .* bytes": truncate,
    "transformer_ema/config.json is missing": lambda path: (path / "transformer_ema" / "config.json").unlink(),
    "state.json has other bytes": lambda path: (path / "state.json").write_text("{"),
    "state.json cannot be read .*No such file": lambda path: (path / "state.json").unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = saved(tmp_path, 1, 2)
    assert checkpoint.newest(tmp_path) == last
    DAMAGES[message](last)
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 1)
    printed = capsys.readouterr().out
    assert re.search(f"00000002: passed over, {message}", printed)


def test_any_changed_byte_of_what_a_checkpoint_says_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path, 2) / "state.json"
    written = file.read_bytes()
    for position in range(len(written)):
        file.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        assert checkpoint.damage(file.parent) == "state.json has other bytes than were written"
    file.write_bytes(written)
    assert not checkpoint.damage(file.parent)


def test_a_checkpoint_before_the_first_step_that_was_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = learner(0)
    one.optimizer.state.clear()
    checkpoints = writer(tmp_path, one)
    checkpoints.save(state(1), {})
    checkpoints.wait()
    fresh = learner(1)
    fresh.optimizer.state.clear()
    fresh.restore(checkpoint.path_of(tmp_path, 1))
    assert equal(everything(fresh), everything(one))
    assert not fresh.optimizer.state


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    flip(saved(tmp_path, 1))
    with pytest.raises(UserError, match="every checkpoint is damaged; move them away to begin anew"):
        checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path / "another") is None


def fill_the_disk(_: object, file: Path, **__: object) -> None:
    """As on a full tmpfs, where safetensors said this."""
    file.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_is_said_and_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = saved(tmp_path, 1)
    checkpoints = writer(tmp_path, learner(0))
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", fill_the_disk)
        checkpoints.save(state(2), {})
        with pytest.raises(UserError, match=r"no checkpoint: .*No space left on device.*make room.*are whole"):
            checkpoints.wait()
    assert checkpoint.newest(tmp_path) == first
    again = writer(tmp_path, learner(0))
    assert [path.name for path in checkpoint.folder_of(tmp_path).iterdir()] == ["00000001"]
    again.save(state(2), {})
    again.wait()
    assert len(checkpoint.all_of(tmp_path)) == 2


def test_a_rank_that_never_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "PATIENCE", 0.2)
    checkpoints = writer(tmp_path, learner(0, 0, 2), 0, 2)
    checkpoints.save(state(1), {})
    with pytest.raises(UserError, match=r"waited 0 s for rank-00001\.json of other ranks"):
        checkpoints.wait()
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(
    ("keep_every", "kept"), [(None, [8, 9, 10]), (4, [4, 8, 9, 10]), (3, [3, 6, 8, 9, 10]), (1, list(range(1, 11)))]
)
def test_the_last_ones_and_every_so_many_are_kept(tmp_path: Path, keep_every: int | None, kept: list[int]) -> None:
    checkpoints = writer(tmp_path, learner(0), keep_last=3, keep_every=keep_every)
    for step in range(1, 11):
        checkpoints.save(state(step), {})
    checkpoints.wait()
    assert [int(path.name) for path in checkpoint.all_of(tmp_path)] == kept
    assert len(list(checkpoint.folder_of(tmp_path).iterdir())) == len(kept)


def test_what_was_written_is_what_the_state_says(tmp_path: Path) -> None:
    path = saved(tmp_path, 3)
    manifest = json.loads((path / "state.json").read_text())
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert set(manifest["files"]) == files - {"state.json"}
    assert load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert checkpoint.check_state(path, SETTINGS, "cache") == 3
    other = SETTINGS.model_copy(update={"freeze": ("text",), "seed": 4})
    with pytest.raises(UserError, match=r'(?s)learning: expected "all weights but text".*seed: expected 4, found 0'):
        checkpoint.check_state(path, other, "cache")
