"""The processes that train together, one per GPU, and what they tell one another."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed

from shared.errors import UserError

Owned = Iterable[tuple[Tensor, int]]
"""Tensors that all ranks have, each with the rank that owns it."""


class Ranks:
    """This process among those that `accelerate launch` has started; alone without it.

    All methods must be called by all ranks, in the same order. They raise UserError where another rank is gone.
    """

    def __init__(self) -> None:
        self._accelerator = Accelerator()
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all ranks."""
        self._together(lambda tensor, _: distributed.all_reduce(tensor, async_op=True), ((t, 0) for t in tensors))

    def start_sum(self, tensor: Tensor, owner: int) -> distributed.Work:
        """Begin to replace a tensor of `owner` by its sum over all ranks. Elsewhere it loses its values."""
        work: distributed.Work = self._checked(lambda: distributed.reduce(tensor, owner, async_op=True))
        return work

    def finish(self, works: Iterable[distributed.Work]) -> None:
        """Until all sums that were started are complete."""
        self._checked(lambda: [work.wait() for work in works])

    def from_owners(self, tensors: Owned) -> None:
        """Replace tensors by those of their owners."""
        self._together(lambda tensor, owner: distributed.broadcast(tensor, owner, async_op=True), tensors)

    def any(self, fact: bool) -> bool:
        """Whether it holds on any rank."""
        count = torch.tensor(float(fact), device=self.device)
        self.sum([count])
        return bool(count)

    def first(self, value: Any) -> Any:
        """The value of rank 0."""
        return self._checked(lambda: broadcast_object_list([value]))[0] if self.count > 1 else value

    def wait(self) -> None:
        """Until all are here."""
        self._checked(self._accelerator.wait_for_everyone)

    def print(self, line: str) -> None:
        """Once, not by every rank."""
        self._accelerator.print(line)

    def _together(self, send: Callable[[Tensor, int], Any], tensors: Owned) -> None:
        """Send all tensors, then wait for all."""
        if self.count > 1:
            self._checked(lambda: [work.wait() for work in [send(tensor, owner) for tensor, owner in tensors]])

    def _checked(self, talk: Callable[[], Any]) -> Any:
        try:
            return talk()
        except RuntimeError as error:  # What both gloo and NCCL raise.
            raise UserError(
                f"rank {self.rank}: another of the {self.count} processes is gone ({str(error).splitlines()[0]}); what "
                "it said stands above. Start the same command again: it goes on from the newest checkpoint"
            ) from error
