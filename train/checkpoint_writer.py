"""Writes checkpoints beside training: only copying them into the host's memory makes it wait.

Each rank writes files of its own into a hidden folder, then a file that says so. When all have, the first rank names
them in state.json and gives the folder its name.
"""

import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shared.errors import UserError
from shared.files import fsync_folder, write_text
from shared.sealed import seal
from train.checkpoint import STATE_FILE, Learner, State, all_of, describe, folder_of, path_of
from train.model.names import State as Tensors
from train.model.weights import save_index, save_tensors, shard_of
from train.ranks import Ranks
from train.settings import CheckpointSettings

PATIENCE = 1800.0
"""Seconds for which the first rank waits for the files of the others."""


class CheckpointWriter:
    """Saves the checkpoints of a run, one at a time, and deletes those that are not kept.

    A context manager: of a run that fails, the checkpoint that is being written is finished, unless others have a part
    in it, for they may be gone.
    """

    def __init__(self, run: Path, settings: CheckpointSettings, learner: Learner, ranks: Ranks) -> None:
        self._run, self._settings, self._learner, self._ranks = run, settings, learner, ranks
        self._shards = ranks.count if learner.trained.sharded else 1
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if ranks.rank == 0:
            for left in folder_of(run).glob(".*"):
                shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and self._thread is not None and self._ranks.count == 1:
            self._thread.join()

    def save(self, state: State, extra: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of `state.step`; of all ranks together. `extra` is kept in state.json.

        Raises UserError where the one before could not be written.
        """
        self.wait()
        target = path_of(self._run, state.step)
        temporary = target.with_name(f".{target.name}")
        if self._ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._ranks.wait()
        shards = self._learner.snapshot(self._ranks.rank == 0) if self._ranks.rank < self._shards else {}
        manifest = {**asdict(state), **extra}
        # A daemon: a process whose training has failed is not kept alive by it.
        self._thread = threading.Thread(target=self._guarded, args=(temporary, target, shards, manifest), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is whole. Raises UserError where it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise UserError where a checkpoint could not be written."""
        if self._error is not None:
            raise UserError(f"no checkpoint: {self._error}; those before it are whole") from self._error

    def _guarded(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def _write(self, temporary: Path, target: Path, shards: Mapping[str, Tensors], manifest: Mapping[str, Any]) -> None:
        rank, written = self._ranks.rank, {}
        for file, tensors in shards.items():
            shard = shard_of(temporary / file, rank, self._shards)
            save_tensors(tensors, shard)
            written[str(shard.relative_to(temporary))] = describe(shard)
        write_text(_receipt(temporary, rank), json.dumps(written))
        if rank == 0:
            self._finish(temporary, target, list(shards), manifest)
            self._delete()

    def _finish(self, temporary: Path, target: Path, files: list[str], manifest: Mapping[str, Any]) -> None:
        """Once all ranks have written theirs, make a checkpoint of it."""
        receipts = [_receipt(temporary, rank) for rank in range(self._ranks.count)]
        deadline = time.monotonic() + PATIENCE
        while missing := [receipt.name for receipt in receipts if not receipt.exists()]:
            if time.monotonic() > deadline:
                raise UserError(f"{temporary}: waited {PATIENCE:.0f} s for {', '.join(missing)} of other ranks")
            time.sleep(0.1)
        sums: dict[str, Any] = {}
        for receipt in receipts:
            sums |= json.loads(receipt.read_text(encoding="utf-8"))
            receipt.unlink()
        beside = [save_index(temporary / file, self._shards) for file in files]
        beside += self._learner.trained.describe(temporary)
        sums |= {str(file.relative_to(temporary)): describe(file) for file in beside if file is not None}
        write_text(temporary / STATE_FILE, seal({**manifest, "files": sums}).decode())
        if target.exists():  # Trained once more from an older one: this is the newer.
            shutil.rmtree(target)
        temporary.rename(target)
        fsync_folder(target.parent)

    def _delete(self) -> None:
        """Delete what the rules do not keep. Renamed first, so that half a checkpoint is never taken for one."""
        settings = self._settings
        for path in all_of(self._run)[: -settings.keep_last]:
            if settings.keep_every is None or int(path.name) % settings.keep_every:
                hidden = path.rename(path.with_name(f".{path.name}.deleted"))
                shutil.rmtree(hidden)


def _receipt(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05}.json"
