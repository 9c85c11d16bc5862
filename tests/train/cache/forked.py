"""`cache-latents` as several processes, as a launcher starts them, but forked from one that has imported everything.

python -m tests.train.cache.forked FOLDER PROCESSES,DYING,PORT PROCESSES,DYING,PORT ... -- ARGUMENT...

One round after the other. Each process writes into FOLDER which shards it has made; the process DYING (-1: none) dies
when it has made some. Standard output ends with a line of exit codes for each round.
"""

import os
import sys
from pathlib import Path

import torch

from tests.train.forked import become
from train.cache import run
from train.cache.cli import main


def tell(path: Path, dies: bool) -> None:
    """Have this process write its shards down, or die instead."""
    finish = run.finish
    path.unlink(missing_ok=True)

    def telling(shards, *arguments, **keywords):
        finish(shards, *arguments, **keywords)
        if dies:
            os._exit(9)
        with path.open("a") as file:
            file.writelines(f"{shard.part}\n" for shard in shards)

    run.finish = telling


def processes(folder: Path, count: int, dying: int, port: int) -> list[int]:
    """Exit codes of a round."""
    ranks = []
    for rank in range(count):
        if not (child := os.fork()):
            become(rank, count, str(port))
            tell(folder / f"{rank}.txt", rank == dying)
            try:
                main()
            except SystemExit as stop:
                os._exit(stop.code or 0)
            os._exit(0)
        ranks.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


if __name__ == "__main__":
    torch.set_num_threads(1)
    cut = sys.argv.index("--")
    folder, *rounds = sys.argv[1:cut]
    del sys.argv[1 : cut + 1]
    codes = [processes(Path(folder), *map(int, numbers.split(","))) for numbers in rounds]
    sys.stdout.write("\n" + "\n".join(" ".join(map(str, found)) for found in codes))
