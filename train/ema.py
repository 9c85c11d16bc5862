"""The exponential moving average of the weights, in float32: in bfloat16 it would never move."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """Average of weights: average += (1 - decay) * (parameter - average) after every step.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run is not held back by its start.

    An average that is offloaded lies in the host's memory. Weight by weight it visits the GPU, on a stream of its own,
    while the next step is computed: the arithmetic is the same.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float, *, offload: bool = False) -> None:
        """The `weights` by name, of any precision."""
        self._decay, self._weights = decay, weights
        self._side = None
        if offload and any(weight.is_cuda for weight in weights.values()):
            self._side = torch.cuda.Stream()
        self._average = {name: self._copy(weight.detach()) for name, weight in weights.items()}

    @property
    def average(self) -> Mapping[str, Tensor]:
        """By name, float32, with all updates in it."""
        if self._side is not None:
            self._side.synchronize()
        return self._average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (counted from 0). `settle` before they change again."""
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            for name, average in self._average.items():
                weight = self._weights[name]
                near = average.to(weight.device, non_blocking=True)
                near.lerp_(weight.float(), 1 - decay)
                if near is not average:
                    average.copy_(near, non_blocking=True)

    def settle(self) -> None:
        """Let the GPU read the weights for the last update before it does what is asked of it from now on."""
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)

    def _copy(self, weight: Tensor) -> Tensor:
        if self._side is None:
            return weight.to(torch.float32, copy=True)
        return torch.empty(weight.shape, dtype=torch.float32, pin_memory=True).copy_(weight)


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors the values of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
