import multiprocessing
import operator
import os
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from shared.engine import LocalEngine, _bounded, open_engine
from shared.errors import UserError
from shared.files import atomic_file


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_gives_one_result(workers: int) -> None:
    assert sorted(LocalEngine(workers).map(operator.neg, [3, 1, 2])) == [-3, -2, -1]


def test_nothing_to_do() -> None:
    assert list(LocalEngine(2).map(operator.neg, [])) == []


def test_one_worker_is_this_process_and_more_are_not() -> None:
    assert list(LocalEngine(1).map(_pid, [0])) == [os.getpid()]
    assert os.getpid() not in LocalEngine(2).map(_pid, [0, 0])


def _pid(_: int) -> int:
    return os.getpid()


def test_a_dead_worker_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"worker process died near 3: .*start the command again"):
        list(LocalEngine(2).map(os._exit, [3, 3, 3]))
    assert multiprocessing.active_children() == []


def test_an_error_of_the_function_is_passed_on() -> None:
    with pytest.raises(ValueError, match="'x'"):
        list(LocalEngine(2).map(int, ["1", "x", "2"]))


def test_a_full_disk_names_the_file_and_the_way_out(tmp_path: Path) -> None:
    parts = [tmp_path / "part-1.parquet", tmp_path / "part-2.parquet"]
    with pytest.raises(UserError, match=r"part-\d\.parquet: No space left on device; .*start the command again"):
        list(LocalEngine(2).map(_fill, parts))
    assert list(tmp_path.iterdir()) == []


def _fill(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.touch()
        Path("/dev/full").write_bytes(b"full")


def test_engines_by_name() -> None:
    with open_engine("local", workers=2) as engine:
        assert sorted(engine.map(operator.neg, [1, 2])) == [-2, -1]
    with pytest.raises(UserError, match="no engine 'spark'; there are local and ray"), open_engine("spark"):
        pass


def test_an_abandoned_iterator_stops_the_work() -> None:
    results = LocalEngine(2).map(time.sleep, [0.01] + [0.2] * 300)
    next(results)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 15  # all tasks would take 30 s
    assert multiprocessing.active_children() == []


class InlinePool:
    """Runs a task when it is submitted; dies with the submission number `dies`."""

    def __init__(self, dies: int = 1000) -> None:
        self.submitted, self.dies = 0, dies

    def submit(self, function: Any, task: Any) -> Future[Any]:
        self.submitted += 1
        if self.submitted == self.dies:
            raise BrokenProcessPool("died")
        future: Future[Any] = Future()
        future.set_result(function(task))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        assert cancel_futures


def test_only_a_few_tasks_wait_in_the_pool() -> None:
    pool = InlinePool()
    results = _bounded(pool, operator.neg, range(100), ahead=4)  # type: ignore[arg-type]
    for consumed in range(100):
        next(results)
        assert pool.submitted <= consumed + 4


def test_a_pool_that_dies_between_two_results() -> None:
    with pytest.raises(UserError, match=r"near 4: .*start the command again"):
        list(_bounded(InlinePool(dies=5), operator.neg, range(9), ahead=4))  # type: ignore[arg-type]
