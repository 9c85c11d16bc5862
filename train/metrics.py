"""What a run reports: metrics.jsonl (every step), TensorBoard, and a line in the terminal."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.tensorboard import SummaryWriter

from shared.progress import clock, console
from train.data.loader import Step
from train.losses import TIMES, Losses
from train.records import Records


class Metrics:
    """Records of a run's steps. A resumed run has one record per step, as an uninterrupted one.

    Values are fetched from the device at `flush`, not at every step, so that the device never waits.
    """

    def __init__(self, folder: Path, first_step: int, steps: int, peak: float) -> None:
        self._steps, self._peak = steps, peak
        self._records = Records(folder / "metrics.jsonl", first_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._waiting: list[dict[str, Any]] = []
        self._since = time.perf_counter()
        self._graphs = 0

    def add(self, step: Step, losses: Losses, norm: Tensor, learning_rate: float, waited: float) -> None:
        """Take in a step without waiting for the device."""
        self._waiting.append(
            {
                "step": step.number,
                "epoch": step.epoch,
                "samples": step.receipt,
                "images": step.samples,
                "flops": step.flops,
                "device": torch.cat([torch.stack([losses.loss, losses.pooled, norm]), losses.by_time.flatten()]),
                "learning_rate": learning_rate,
                "data_wait": waited,
                "graphs": counters["stats"]["unique_graphs"],
            }
        )

    def flush(self) -> None:
        """Write the waiting records, and print the line of the last one."""
        if not self._waiting:
            return
        values = [_values(row) for row in torch.stack([record.pop("device") for record in self._waiting]).tolist()]
        seconds = time.perf_counter() - self._since
        speed = {
            "images_per_second": sum(r["images"] for r in self._waiting) / seconds,
            "share_of_peak": sum(r["flops"] for r in self._waiting) / seconds / self._peak,
            "seconds": seconds / len(self._waiting),
        }
        for record, found in zip(self._waiting, values, strict=True):
            self._write(record | found | speed)
        left = (self._steps - self._waiting[-1]["step"] - 1) * speed["seconds"]
        if (graphs := self._waiting[-1]["graphs"]) != self._graphs:
            console.print(f"compiled {graphs} graphs so far; after the first steps, this number should not grow")
            self._graphs = graphs
        self._print(self._waiting[-1] | values[-1] | speed, left)
        self._waiting, self._since = [], time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the rates what is not training: drawing pictures, writing checkpoints."""
        self.flush()
        yield
        self._since = time.perf_counter()

    def close(self) -> None:
        """Write what is left."""
        try:
            self.flush()
        finally:
            self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        # JSON has no number that is not finite.
        record = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in record.items()}
        self._records.add(record)
        for key, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, record["step"])

    def _print(self, record: dict[str, Any], seconds_left: float) -> None:
        console.print(
            f"step {record['step'] + 1:,}/{self._steps:,}  loss {record['loss']:.4f}  "
            f"norm {record['grad_norm']:.2f}  {record['images_per_second']:.1f} images/s  "
            f"{record['share_of_peak']:.0%} of peak  {clock(seconds_left)} left",
            soft_wrap=True,
        )


class Reports:
    """The files in which a run records itself. A context manager, which finishes them also where training fails."""

    def __init__(self, folder: Path, first_step: int, steps: int, peak: float) -> None:
        self.metrics = Metrics(folder, first_step, steps, peak)
        self.validation = Records(folder / "validation.jsonl", first_step)
        self.skipped = Records(folder / "skipped.jsonl", first_step)

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()


def _values(row: list[float]) -> dict[str, Any]:
    """What a step's numbers from the device are."""
    loss, pooled, norm, *by_time = row
    return {
        "loss": loss,
        "loss_pooled": pooled,
        "grad_norm": norm,
        "loss_by_time": [
            total / count if count else None for total, count in zip(by_time[:TIMES], by_time[TIMES:], strict=True)
        ],
    }
