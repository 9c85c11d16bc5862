"""Several processes, as a launcher starts them, but forked from one that has imported everything."""

import os
from collections.abc import Callable

import torch


def become(rank: int, count: int, port: str) -> None:
    """Let this process be one of several."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def fork(count: int, port: str, run: Callable[[], object]) -> int:
    """Run something in several processes, which talk over gloo; returns the largest of their codes."""
    torch.set_num_threads(1)
    ranks = []
    for rank in range(count):
        if not (child := os.fork()):
            become(rank, count, port)
            run()
            os._exit(0)
        ranks.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks)
