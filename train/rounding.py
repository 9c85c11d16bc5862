"""Weights that are stored as bfloat16 and learn all the same.

Each new value is rounded to one of its two neighbours, the likelier the nearer it is: on average it is the value itself
(arXiv 1502.02551; of bfloat16, 2010.06192). Rounded to the nearest, steps of less than half the distance between
neighbours would all be lost.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.data.plan import ROUNDING
from train.data.random import stream_key


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 to bfloat16: what bfloat16 can hold stays as it is, the rest goes up or down at random.

    A bfloat16 is the upper half of a float32. A random number added to the lower half carries over as often as that
    half is large, away from zero whatever the sign.
    """
    noise = torch.randint(
        1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )  # torchao's rounding draws from the global generator: another world size would be another run.
    return noise.add_(values.view(torch.int32)).bitwise_and_(-1 << 16).view(torch.float32).bfloat16()


class Rounding(torch.optim.Optimizer):
    """Steps weights of bfloat16 by an optimiser of float32 ones: its arithmetic and its state are as they would be.

    Weight by weight, a float32 copy is stepped and rounded. The random numbers follow from the seed, the number of
    steps taken and the name of the weight: they depend neither on who owns the weight nor on interruptions.
    """

    def __init__(self, inner: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], seed: int) -> None:
        """Takes over the groups of `inner`, which must have no state yet. `weights` are its weights, by name."""
        super().__init__(inner.param_groups, inner.defaults)
        self._inner, self._seed = inner, seed
        self._names = {weight: zlib.crc32(name.encode()) for name, weight in weights.items()}

    @torch.no_grad()
    def step(self, _: Any = None) -> None:  # type: ignore[override]
        """Of all weights that have a gradient, in float32."""
        taken = _taken(self.state.values())
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group, stream_key(self._seed, ROUNDING, taken, self._names[weight]).item())

    def _step(self, weight: nn.Parameter, group: dict[str, Any], seed: int) -> None:
        exact = nn.Parameter(weight.float())
        exact.grad = weight.grad
        self._inner.param_groups = [{**group, "params": [exact]}]
        self._inner.state = {exact: self.state[weight]}  # type: ignore[assignment]
        self._inner.step()
        generator = torch.Generator(weight.device).manual_seed(seed)
        weight.copy_(round_stochastically(exact.detach(), generator))


def _taken(states: Iterable[Mapping[str, Tensor]]) -> int:
    """How many steps there were, by AdamW's own count, which checkpoints keep. All weights are stepped together."""
    return next((int(state["step"]) for state in states), 0)
