"""A model on a device: bytes of pictures in, vectors out."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.device import Pending, Worker
from shared.progress import console
from shared.vision import Precision
from shared.vision.feeder import Batch
from shared.vision.geometry import Geometry
from shared.vision.nvjpeg import squares


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
        self.worker = Worker(device)
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

    def launch(self, pixels: Tensor) -> Pending:
        """Begin to compute the vectors of what `bring` has brought."""
        return self.worker.launch(self._halving, pixels)

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
