"""Engines run a function over many shards: on the processes of this machine, or on the nodes of a Ray cluster."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

from shared.errors import UserError

DIED = "out of memory, or a crash inside a decoder; finished shards are kept, start the command again to go on"
"""What killed a process, and what a user can do about it."""

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("local", "ray")


class Engine(Protocol):
    """Runs picklable functions; results come in the order in which they are finished."""

    cores: int
    """How many processes may work on this machine at once."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield `function(task)` for every task."""
        ...


class LocalEngine:
    """Processes on this machine. One worker means this very process."""

    def __init__(self, workers: int) -> None:
        self.cores = workers

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield `function(task)` for every task.

        Raises UserError when a worker is killed (out of memory, a crash in a decoder): finished shards
        are on disk by then, and the next run goes on behind them.
        """
        workers = min(self.cores, len(tasks))
        if workers <= 1:
            yield from map(function, tasks)
            return
        # Spawned, because a forked child would inherit locks held by DuckDB's and Arrow's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent) as pool:
            yield from _bounded(pool, function, tasks, ahead=2 * workers)


@contextmanager
def open_engine(name: str, workers: int | None = None) -> Iterator[Engine]:
    """The engine of a name in ENGINES; it is given up with the context.

    `workers` is how many tasks run at once, by default one per CPU core of the machine or of the cluster. Raises
    UserError for another name, and for `ray` where there is no cluster or Ray is not installed.
    """
    if name == "local":
        yield LocalEngine(workers or os.cpu_count() or 1)
    elif name == "ray":
        try:
            from shared.ray_engine import RayEngine
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise UserError("engine 'ray' needs Ray: pip install 'illustrious-lu[cluster]'") from None
        with RayEngine(workers) as engine:
            yield engine
    else:
        raise UserError(f"no engine {name!r}; there are {' and '.join(ENGINES)}")


def follow_parent() -> None:
    """End this worker when its parent ends: killed, it would leave the worker waiting for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def decoders_named() -> Iterator[None]:
    """Raises UserError where a pool says that one of its processes, which decode pictures, died."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(f"a process that decodes pictures died: {DIED}") from None


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
        raise UserError(f"a worker process died near {task}: {DIED}") from error
    finally:
        pool.shutdown(cancel_futures=True)
