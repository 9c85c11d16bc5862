"""A device that computes while the next batch is brought to it and the last one is taken from it."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from shared.progress import console


def devices(cpu: bool = False) -> list[torch.device]:
    """All GPUs, or the CPU: where there is none, or it is asked for."""
    count = 0 if cpu else torch.cuda.device_count()
    return [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]


class Worker:
    """A device, and how long it had something to do. A CPU computes at once, and is not timed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._busy, self._since = 0.0, 0.0
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)

    def bring(self, tensor: Tensor) -> Tensor:
        """A tensor of this machine's memory on the device.

        On a GPU it is copied on a stream of its own: a thread can call this while another computes.
        """
        if self.device.type == "cpu":
            return tensor
        with torch.cuda.device(self.device), torch.cuda.stream(self._side):
            brought = tensor.pin_memory().to(self.device, non_blocking=True)
            self._side.synchronize()
        return brought

    def launch(self, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> "Pending":
        """Begin to compute from what `bring` has brought."""
        if self.device.type == "cpu":
            return Pending(compute(inputs))
        with torch.cuda.device(self.device):
            inputs.record_stream(torch.cuda.current_stream())  # They were allocated for the other one.
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            outputs = compute(inputs)
            found = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True).copy_(outputs, non_blocking=True)
            end.record()
        return Pending(found, self, (start, end))

    def count(self, seconds: float) -> None:
        """Note how long a batch took. The first one, for which the model is compiled, does not count."""
        if self._since:
            self._busy += seconds
        else:
            self._since = time.monotonic()

    def waited(self) -> float | None:
        """The share of the time since the first batch in which a GPU had nothing to do; None for a CPU."""
        return 1 - self._busy / (time.monotonic() - self._since) if self._since else None


class Pending:
    """A tensor that is being computed."""

    def __init__(
        self,
        found: Tensor,
        worker: Worker | None = None,
        events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None,
    ) -> None:
        self._found, self._worker, self._events = found, worker, events

    def result(self) -> Tensor:
        """The tensor, in this machine's memory; waits for the device."""
        if self._events and self._worker:
            start, end = self._events
            end.synchronize()
            self._worker.count(start.elapsed_time(end) / 1e3)
            self._events = None
        return self._found


def busy(workers: Iterable[Worker]) -> str:
    """The share of the time in which GPUs had something to do, for a line of progress; empty without a GPU."""
    waited = [share for worker in workers if (share := worker.waited()) is not None]
    return f"GPU busy {1 - sum(waited) / len(waited):.0%}" if waited else ""


def tell_waiting(workers: Iterable[Worker], unit: str) -> None:
    """Print for each GPU how much of the time it waited for what it computes with."""
    for worker in workers:
        if (waited := worker.waited()) is not None:
            console.print(f"{worker.device} waited {waited:.1%} of the time for {unit}")
