"""`cache-latents`, killed again and again, ends in the bytes of a run that nothing disturbed."""

import multiprocessing
import random
import sys
import time
from pathlib import Path

import pytest

from tests.train.cache.test_cache import files
from train.cache.verify import verify

KILLS = 20
WORKERS = (1, 2, 3)


def command(*arguments: str) -> None:
    """`cache-latents` in this process."""
    from train.cache.cli import main

    sys.argv = ["cache-latents", *arguments]
    main()


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that fork")
def test_killed_at_random_moments(curated: Path, tiny_model: Path, cached: Path):
    # The fork server imports once what a fresh interpreter would import for every run that is killed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.cache.cli", "train.cache.run"])
    rng, root = random.Random(0), curated / "cache"

    def start(workers: int) -> multiprocessing.process.BaseProcess:
        words = ("--work", str(curated), "--model", str(tiny_model), "--workers", str(workers))
        process = context.Process(target=command, args=words)
        process.start()
        return process

    for kill in range(KILLS):
        before, process = state(root), start(WORKERS[kill % 3])
        # Some are killed at once, others when something has been written, most within what they do then.
        if rng.random() < 0.8:
            while process.is_alive() and state(root) == before:
                time.sleep(0.002)
        process.join(rng.expovariate(20))
        process.kill()
        process.join()
        if process.exitcode == 0:  # It was finished: a part of its work has to be done again.
            parts = sorted(root.rglob("part-*.parquet"))
            for part in rng.sample(parts, len(parts) // 2):
                part.unlink()
    last = start(2)
    last.join()
    assert last.exitcode == 0
    assert {name: digest for name, digest in files(curated).items() if not name.endswith(".tmp")} == files(cached)
    assert verify(curated) == []


def state(root: Path) -> set[tuple[str, int]]:
    """What is written, half-written files too."""
    found = set()
    for path in root.rglob("*"):
        try:
            found.add((str(path), path.stat().st_size))
        except FileNotFoundError:  # A temporary file that is a finished one now.
            continue
    return found
