"""Several processes make one cache, as `torchrun` or `accelerate launch` starts them: one per GPU, on any machines.

Each takes every n-th shard of the lists. The first one writes the lists, and in the end the manifest; the others wait.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from shared.device import devices
from shared.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long processes wait for one another. One that dies is noticed at once, for its connection breaks."""


@dataclass(frozen=True)
class Share:
    """What one of `count` processes does."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    """Of the processes on this machine."""

    @property
    def first(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    @property
    def devices(self) -> list[torch.device]:
        """All GPUs for a process that is alone, else one; the CPU where there is none."""
        found = devices()
        return found if self.count == 1 else [found[self.local_rank % len(found)]]

    @property
    def cores(self) -> int:
        """Of this machine, for this process."""
        return max(1, (os.cpu_count() or 1) // self.local_count)

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Those of this process."""
        return items[self.rank :: self.count]

    def label(self, name: str) -> str:
        """Name of a line of progress."""
        return name if self.count == 1 else f"{name} ({self.rank + 1} of {self.count})"

    def wait(self) -> None:
        """Until all processes are here. Raises UserError where one is gone."""
        if self.count == 1:
            return
        try:
            distributed.barrier()
        except RuntimeError as error:  # What gloo raises.
            raise UserError(
                f"rank {self.rank}: another of the {self.count} processes is gone ({str(error).splitlines()[0]}); what "
                "it said stands above. Finished shards are kept: start the same command again"
            ) from error


@contextmanager
def shared_work() -> Iterator[Share]:
    """The share of this process; alone, where no launcher has started it."""
    rank, count, local_rank = (int(os.environ.get(name, default)) for name, default in DEFAULTS.items())
    if count == 1:
        yield Share()
        return
    # gloo and not NCCL: nothing but waiting is needed, and NCCL waits ten minutes.
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Share(rank, count, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    finally:
        distributed.destroy_process_group()


DEFAULTS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
"""What a launcher puts into the environment."""
