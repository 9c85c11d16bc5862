"""The exponential moving average of the weights, in float32: in bfloat16 it would never move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Average of a model's parameters: average += (1 - decay) * (parameter - average) after every step.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run is not held back by its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = dict(model.named_parameters())
        self.average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (counted from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = [parameter.float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the averages for a while, for drawing samples."""
        raw = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(raw)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
