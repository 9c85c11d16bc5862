"""A wait that does not end is named: by every rank, what it waits for and since when.

A collective operation that hangs looks the same on all ranks but one. The odd line out names the rank that holds up the
others, long before the time-out of the collective ends the run.
"""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Self


@dataclass
class _Wait:
    """What is being done, since `start` on the monotonic clock; the next line is due after `due` seconds."""

    what: str
    start: float
    due: float


class Watch:
    """Says on stderr when this rank does one thing for longer than `seconds`, and again after 2, 4, 8 times as long.

    While it is entered a thread looks, about once in `seconds`; `doing` costs microseconds. One thread may call it. A
    library that hangs without releasing Python's global lock is not seen.
    """

    def __init__(self, seconds: float = 300.0, rank: int = 0) -> None:
        self._seconds, self._name = seconds, f"rank {rank} on {socket.gethostname()}"
        self._current: _Wait | None = None
        self._over = Event()
        self._thread = Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name what is done inside, such as "waiting for the loader, step 12". Of nested ones the innermost counts."""
        outer, self._current = self._current, _Wait(what, time.monotonic(), self._seconds)
        try:
            yield
        finally:
            self._current = outer

    def _look(self) -> None:
        # What begins during a sleep of at most `seconds` is not due before its end, so no line is late.
        while not self._over.wait(self._say()):
            pass

    def _say(self) -> float:
        """Print the line that is due, if one is. Returns the seconds until the next look."""
        current = self._current
        if current is None:
            return self._seconds
        past = time.monotonic() - current.start
        if past >= current.due:
            current.due *= 2
            sys.stderr.write(
                f"{self._name}: {current.what}, for {_duration(past)}; the next line comes after "
                f"{_duration(current.due)}\n"
            )
            sys.stderr.flush()
        return max(min(current.due - past, self._seconds), 0)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.3g} s"
