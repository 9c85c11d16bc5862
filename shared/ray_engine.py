"""The engine `ray`: the nodes of a running Ray cluster.

A task may run twice: the node it ran on died, or was only cut off and goes on. That does no harm as long as what a task
writes appears atomically and depends on nothing but the task. This is the only module that imports Ray.
"""

import functools
import importlib.metadata
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Nothing is reported to Ray's makers.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # The code is installed on every node, not copied there.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Tasks that ask for no GPU leave CUDA_VISIBLE_DEVICES alone.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # The first error is raised; those of the tasks beside it are not printed.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Nor are Ray's own pages on every worker that dies.
}
for _name, _value in _SETTINGS.items():  # Ray reads them when it is imported.
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import RayError, RayTaskError  # noqa: E402

from shared.engine import DIED  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.progress import console  # noqa: E402

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""How often a task is run again after its worker or its node has died."""

PACKAGES = ("illustrious-lu", "numpy", "pillow", "pyarrow")
"""Whose versions decide the bytes that a task writes. Ray itself refuses another Python or another Ray."""

_START = (
    "start one with `ray start --head` on this node and `ray start --address=HEAD:6379` on the others; "
    "where its head is another node, set RAY_ADDRESS=HEAD:6379"
)


class RayEngine:
    """All nodes of a cluster, one CPU core per task. A context manager: connected from start to end."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        """Connect to a running cluster; none is started, unless the address is `local`.

        `workers` is how many tasks are with the cluster at once, by default two per core of it, so that no core waits.
        `address` is HOST:PORT of its head, by default what RAY_ADDRESS says, else the cluster of this machine.

        Raises UserError where there is no cluster.
        """
        self._workers = workers
        self.cores = os.cpu_count() or 1
        self._seen = (0, 0)
        address = address or os.environ.get("RAY_ADDRESS") or "auto"
        where = "on this machine" if address == "auto" else f"at {address}"
        try:
            if ":" in address and "://" not in address:
                _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            raise UserError(f"no Ray cluster {where}: {_START}") from error
        except RuntimeError as error:  # Such as another version of Python.
            raise UserError(f"the Ray cluster {where} cannot be used: {error}") from error

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield `function(task)` for every task, in the order in which they are finished.

        What the function raises is raised here as it is. Raises UserError when a task has taken down its worker
        `RETRIES` times and once more, and when a node has other versions of `PACKAGES` than this one.
        """
        queue = iter(tasks)
        running: dict[ray.ObjectRef[R], T] = {}
        here = versions()
        try:
            while True:
                for task in itertools.islice(queue, max(0, self._room() - len(running))):
                    running[_call.remote(function, task, here)] = task
                if not running:
                    return
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                yield _result(done, running.pop(done))
        finally:
            if ray.is_initialized():  # Otherwise all is over, and to cancel would start a cluster.
                for reference in running:
                    ray.cancel(reference)

    def _room(self) -> int:
        """How many tasks may be with the cluster; says so when nodes have come or gone."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        nodes, cores = len(alive), int(sum(resources.get("CPU", 0) for resources in alive))
        if (nodes, cores) != self._seen:
            self._seen = nodes, cores
            console.print(f"Ray nodes: {nodes}, cores: {cores}")
        return self._workers or max(1, 2 * cores)


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nothing listens: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _call(function: Callable[[Any], Any], task: Any, expected: Mapping[str, str]) -> Any:
    """Runs on a node."""
    for name, version in expected.items():
        if _version(name) != version:
            raise UserError(
                f"node {socket.gethostname()} has {name} {_version(name)}, the node of the command has {version}; "
                "install the same versions on every node"
            )
    try:
        return function(task)
    except FileNotFoundError as error:
        raise UserError(
            f"{error} on node {socket.gethostname()}; source and work directory must lie where all nodes see them"
        ) from error


def _result(reference: "ray.ObjectRef[R]", task: object) -> R:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise UserError(f"a task failed {RETRIES + 1} times, on {task}: {type(error).__name__}; {DIED}") from error
