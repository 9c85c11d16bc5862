"""`train` as several processes, as a launcher starts them, but forked from one that has imported everything.

python -m tests.train.serve

Reads requests, a line of JSON each; answers with the ids of the ranks, and when all have ended with their exit codes.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import train.run  # noqa: F401 - what takes long to import
from tests.train.forked import become
from train.cli import main
from train.model import weights


def hold(folder: str, mark: str) -> None:
    """Let the last file of a checkpoint, in the hidden `folder`, stay half written while `mark` exists."""
    real = weights.save_file

    def save_file(tensors: Any, file: Path, **others: Any) -> None:
        if {folder, "optimizer"} <= set(file.parts):
            file.write_bytes(b"half")
            Path(mark).touch()
            while Path(mark).exists():
                time.sleep(0.01)
        real(tensors, file, **others)

    weights.save_file = save_file


def serve(request: dict[str, Any]) -> None:
    """Start the ranks of a request, and wait for them."""
    ranks = []
    for rank in range(request["count"]):
        if not (child := os.fork()):
            become(rank, request["count"], request["port"])
            output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            hold(*request["hold"])
            sys.argv[1:] = request["arguments"]
            sys.exit(main())
        ranks.append(child)
    answer(ranks)
    answer([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks])


def answer(numbers: list[int]) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        serve(json.loads(line))
