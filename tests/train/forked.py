"""`train` as several processes, as a launcher starts them, but forked from one that has imported everything.

python forked.py PROCESSES PORT ARGUMENT...
"""

import os
import sys

import torch

import train.run  # noqa: F401 - what takes long to import
from train.cli import main


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    count, port, sys.argv[1:] = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ranks = []
    for rank in range(count):
        if not (child := os.fork()):
            become(rank, count, port)
            main()
            os._exit(0)
        ranks.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
