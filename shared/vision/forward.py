"""A model on a device: bytes of pictures in, vectors out."""

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.progress import console
from shared.vision import Precision
from shared.vision.feeder import Batch
from shared.vision.geometry import Geometry
from shared.vision.nvjpeg import squares


def devices(cpu: bool = False) -> list[torch.device]:
    """All GPUs, or the CPU: where there is none, or it is asked for."""
    count = 0 if cpu else torch.cuda.device_count()
    return [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]


class Forward:
    """A model that takes normalised pictures (n, 3, side, side) and gives vectors (n, k).

    On a GPU it is compiled, and batches are computed while the next are prepared.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        precision: Precision,
    ) -> None:
        """Works with a copy of `model`. `mean` and `std` are of the channels, 0 to 1. The CPU computes in float32."""
        self.device = device
        self.precision: Precision = precision if device.type == "cuda" else "float32"
        self._busy, self._since = 0.0, 0.0
        self._dtype: torch.dtype = getattr(torch, self.precision)
        self._model = copy.deepcopy(model).to(device, self._dtype).eval().requires_grad_(False)
        self._scale = (1 / (255 * torch.tensor(std))).to(device)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).to(device)
        self._compute = torch.compile(self._plain) if device.type == "cuda" else self._plain
        self._most: int | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)

    @torch.inference_mode()
    def bring(self, batch: Batch, geometry: Geometry) -> Tensor:
        """The pixels (n, side, side, 3) of a decoded batch on the device; the batch is not needed any more.

        On a GPU n is the size of a full batch, so that there is one shape to compile for, and copies and JPEGs have a
        stream of their own: a thread can call this while the model computes.
        """
        if self.device.type == "cpu":
            return torch.from_numpy(batch.pixels[: batch.rows].copy())
        with torch.cuda.device(self.device), torch.cuda.stream(self._side):
            pixels = torch.from_numpy(batch.pixels).pin_memory().to(self.device, non_blocking=True)
            if jpegs := batch.jpegs():
                pixels[list(jpegs)] = squares(list(jpegs.values()), geometry, self.device)
            self._side.synchronize()
        return pixels

    def launch(self, pixels: Tensor) -> "Pending":
        """Begin to compute the vectors of what `bring` has brought."""
        if self.device.type == "cpu":
            return Pending(self._halving(pixels))
        with torch.cuda.device(self.device):
            pixels.record_stream(torch.cuda.current_stream())  # They were allocated for the other one.
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            vectors = self._halving(pixels)
            found = torch.empty(vectors.shape, pin_memory=True).copy_(vectors, non_blocking=True)
            end.record()
        return Pending(found, self, (start, end))

    def count(self, seconds: float) -> None:
        """Note how long a batch took. The first one, for which the model is compiled, does not count."""
        if self._since:
            self._busy += seconds
        else:
            self._since = time.monotonic()

    def waited(self) -> float | None:
        """The share of the time since the first batch in which the GPU had nothing to do; None for a CPU."""
        return 1 - self._busy / (time.monotonic() - self._since) if self._since else None

    @torch.inference_mode()
    def _halving(self, pixels: Tensor) -> Tensor:
        """Compute in pieces that fit into the memory: what does not fit is halved, from then on."""
        most = self._most or len(pixels)
        try:
            return torch.cat([self._compute(piece) for piece in pixels.split(most)])
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        self._most = most // 2
        console.print(f"out of memory on {self.device}: the batch is halved to {self._most}")
        torch.cuda.empty_cache()
        return self._halving(pixels)

    def _plain(self, pixels: Tensor) -> Tensor:
        normalised = (pixels * self._scale + self._shift).permute(0, 3, 1, 2)
        found: Tensor = self._model(normalised.to(self._dtype))
        return found.float()


class Pending:
    """Vectors that are being computed."""

    def __init__(
        self,
        vectors: Tensor,
        forward: Forward | None = None,
        events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None,
    ) -> None:
        self._vectors, self._forward, self._events = vectors, forward, events

    def result(self) -> NDArray[np.float32]:
        """(n, k); waits for the device."""
        if self._events and self._forward:
            start, end = self._events
            end.synchronize()
            self._forward.count(start.elapsed_time(end) / 1e3)
        return self._vectors.numpy()
