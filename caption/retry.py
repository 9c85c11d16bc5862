"""When a request is sent again that got no answer."""

import email.utils
import random
import time

BACKOFF, LONGEST_WAIT = 1.0, 60.0
"""Seconds before a request is sent again: at first, doubled each time, and at most (times 0.5 to 1.5, by chance)."""


def backoff(times: int) -> float:
    """Seconds to wait after something went wrong for the first time, the second time and so on."""
    return min(LONGEST_WAIT, BACKOFF * 2.0 ** min(times - 1, 30)) * random.uniform(0.5, 1.5)


def retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, in a header that holds them or a date; None where it does not."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if seconds > 0 else None


class Patience:
    """How long one request still waits for a server that is busy."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end, self.times = seconds, 0.0, 0

    def lasts(self, wait: float | None) -> bool:
        """Count one more time that the server is busy; whether there is patience left to wait for so long.

        It is counted from the first time on: how long a request was queued before says nothing about the server.
        """
        now = time.monotonic()
        if not self.times:
            self._end = now + self._seconds
        self.times += 1
        return now + (wait or 0.0) <= self._end
