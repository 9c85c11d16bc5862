"""Iterators whose items are made by threads, and iterators for several threads."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """What an iterator yields, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def behind(function: Callable[[T], R], items: Iterable[T], threads: int = 1) -> Iterator[R]:
    """`function` of each item, in order, computed by threads while the next items are waited for."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > threads:
                yield running.popleft().result()
        for last in running:
            yield last.result()


class Shared(Iterator[T]):
    """An iterator for several threads."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


def merged(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """What several iterators yield, each driven by a thread of its own; the first error is raised."""
    if len(streams) == 1:
        yield from streams[0]
        return
    found: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()

    def drive(stream: Iterator[T]) -> None:
        try:
            for item in stream:
                found.put(item)
            found.put(None)
        except BaseException as error:  # To be raised in the thread that waits.
            found.put(error)

    for stream in streams:
        threading.Thread(target=drive, args=(stream,), daemon=True).start()
    running = len(streams)
    while running:
        item = found.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            running -= 1
        else:
            yield item
