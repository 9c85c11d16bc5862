"""Being asked to stop: by a cluster that wants its machine back, or by hand."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class Request:
    """Whether somebody has asked."""

    signal: str = ""
    """The name of the signal that came; empty: none."""


@contextmanager
def requests() -> Iterator[Request]:
    """Take note of SIGTERM and SIGUSR1 in place of dying of them; of a second one the process dies."""
    request = Request()

    def note(number: int, _: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
