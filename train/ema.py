"""The exponential moving average of the weights, in float32: in bfloat16 it would never move."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """Average of weights: average += (1 - decay) * (parameter - average) after every step.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run is not held back by its start.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """The `weights` by name, of any precision."""
        self._decay, self._weights = decay, weights
        self.average = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (counted from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self.average.items():
            average.lerp_(self._weights[name].float(), 1 - decay)


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors the values of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
