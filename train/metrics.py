"""What a run reports: metrics.jsonl (every step), TensorBoard, and a line in the terminal."""

import math
import time
from collections.abc import Iterator, Sequence
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
from train.records import METRICS, SKIPPED, VALIDATION, Records

WORTH_SAYING = 0.02
"""Share of the time that a step may wait for data before it is said."""


class Metrics:
    """Records of a run's steps. A resumed run has one record per step, as an uninterrupted one.

    Values are fetched from the device at `flush`, not at every step, so that the device never waits.
    """

    def __init__(self, records: Records, board: SummaryWriter, steps: int, peak: float) -> None:
        """`steps` is the last step of the run, `peak` what all its devices together could do, in FLOP/s."""
        self._records, self._board, self._steps, self._peak = records, board, steps, peak
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
            "share_waiting": sum(r["data_wait"] for r in self._waiting) / seconds,
            "memory": float(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None,
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

    def _write(self, record: dict[str, Any]) -> None:
        # JSON has no number that is not finite.
        record = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in record.items()}
        self._records.add(record)
        scalars = record | by_part("loss_by_time", record["loss_by_time"])
        for key, value in scalars.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, record["step"])

    def _print(self, record: dict[str, Any], seconds_left: float) -> None:
        waiting = record["share_waiting"]
        console.print(
            f"step {record['step'] + 1:,}/{self._steps:,}  loss {record['loss']:.4f}  "
            f"norm {record['grad_norm']:.2f}  {record['images_per_second']:.1f} images/s  "
            f"{record['share_of_peak']:.0%} of peak  {clock(seconds_left)} left"
            + (f"  {waiting:.0%} of the time spent waiting for data" if waiting > WORTH_SAYING else ""),
            soft_wrap=True,
        )


class Reports:
    """The files in which a run records itself. A context manager, which finishes them also where training fails."""

    def __init__(self, folder: Path, first_step: int, steps: int, peak: float) -> None:
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self.metrics = Metrics(Records(folder / METRICS, first_step), self._board, steps, peak)
        self.skipped = Records(folder / SKIPPED, first_step)
        self._validation = Records(folder / VALIDATION, first_step)

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.metrics.flush()
        finally:
            self._board.close()

    def validated(self, record: dict[str, Any]) -> None:
        """Take in a `Validation.record`."""
        self._validation.add(record)
        scalars = {"validation/loss": record["loss"]} | by_part("validation_by_time", record["by_time"])
        for name, curve in record["series"].items():
            scalars[f"validation/{name}"] = sum(curve) / len(curve)
        for key, value in scalars.items():
            self._board.add_scalar(key, value, record["step"])


def by_part(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Values at equal parts of [0, 1] as scalars for TensorBoard, each named by the middle of its part."""
    return {f"{name}/{(number + 0.5) / len(values):.3g}": value for number, value in enumerate(values)}


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
