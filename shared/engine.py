"""Engines run a function over many shards. The local one uses the processes of this machine."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Engine(Protocol):
    """Runs picklable functions; results come in the order in which they are finished."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield `function(task)` for every task."""
        ...


class LocalEngine:
    """Processes on this machine. One worker means this very process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield `function(task)` for every task.

        Raises RuntimeError when a worker is killed (out of memory, a crash in a decoder): finished shards
        are on disk by then, and the next run goes on behind them.
        """
        workers = min(self._workers, len(tasks))
        if workers <= 1:
            yield from map(function, tasks)
            return
        # Spawned, because a forked child would inherit locks held by DuckDB's and Arrow's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent) as pool:
            yield from _bounded(pool, function, tasks, ahead=2 * workers)


def _follow_parent() -> None:
    """End this worker when its parent ends: killed, it would leave the worker waiting for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _bounded(pool: ProcessPoolExecutor, function: Callable[[T], R], tasks: Sequence[T], ahead: int) -> Iterator[R]:
    """Keep only `ahead` tasks submitted, so that ten million pictures do not wait as pickles in memory."""
    queue = iter(tasks)
    running: dict[Future[R], T] = {}
    try:
        while True:
            for task in queue:
                running[pool.submit(function, task)] = task
                if len(running) >= ahead:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                yield future.result()
    except BrokenProcessPool as error:  # From a result, or from the next submit.
        raise RuntimeError(
            f"a worker process died near {task}: out of memory, or a crash inside a decoder; "
            "finished shards are kept, start the command again to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
