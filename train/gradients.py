"""The gradients of a step, summed up over micro-batches and ranks."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, distributed, nn

from train.ranks import Ranks


class GradientSums:
    """float32 sums of the gradients of weights, over the micro-batches of a step, then over all ranks.

    Ranks exchange them while the last micro-batch is still in its backward pass: the sum of a weight is sent once
    nothing is to be added to it. All ranks must send in one order, whatever theirs of computing: it is the reverse of
    that of the model's parameters, about that of a backward pass, and a weight waits for those before it.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], owners: Mapping[str, int], ranks: Ranks) -> None:
        """Takes over all gradients that the weights will get. `owners` are the ranks that want their sums."""
        self._weights, self._owners, self._ranks = weights, owners, ranks
        self._order = list(weights)[::-1]
        self._sums: dict[str, Tensor] = {}
        self._is_last = False
        self._complete: set[str] = set()
        self._sent: list[distributed.Work] = []
        """As many as have been sent of the order."""
        for name, weight in weights.items():
            weight.register_post_accumulate_grad_hook(partial(self._add, name))

    def expect_last(self) -> None:
        """The next backward pass is the last of this step, on this rank."""
        self._is_last = True

    def collect(self) -> dict[str, Tensor]:
        """The sums of all ranks, by name; complete where this rank owns the weight. With them the step ends.

        Of one rank those of weights that had a gradient, of several all.
        """
        if self._ranks.count > 1:
            while len(self._sent) < len(self._order):
                self._send(self._order[len(self._sent)])
            self._ranks.finish(self._sent)
        sums, self._sums, self._is_last = self._sums, {}, False
        self._complete.clear()
        self._sent.clear()
        return sums

    def _add(self, name: str, weight: Tensor) -> None:
        """Take over the gradient of a micro-batch; its memory is free at once."""
        assert weight.grad is not None
        if name in self._sums:
            self._sums[name].add_(weight.grad)
        else:
            self._sums[name] = weight.grad.float()
        weight.grad = None
        if self._is_last and self._ranks.count > 1:
            self._complete.add(name)
            while len(self._sent) < len(self._order) and self._order[len(self._sent)] in self._complete:
                self._send(self._order[len(self._sent)])

    def _send(self, name: str) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(self._weights[name], dtype=torch.float32)
        self._sent.append(self._ranks.start_sum(self._sums[name], self._owners[name]))
