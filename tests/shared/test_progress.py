import io
import time

import pytest
from rich.console import Console

from shared import progress
from shared.progress import Meter, clock


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, force_terminal=False, width=20, highlight=False))
    return file


def test_lines_in_a_log(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Meter("ingest", 5000, "files", done=1000) as meter:
        now += 9
        meter.advance(500)
        assert log.getvalue() == ""  # a line every ten seconds, not one per item
        now += 1
        meter.advance(500, note="[/odd] 3 rejected")
        now += 10
        meter.advance(1000)
    assert log.getvalue().splitlines() == [
        "ingest: 2,000/5,000 files, 100.0/s, 0:00:30 left [/odd] 3 rejected",
        "ingest: 3,000/5,000 files, 100.0/s, 0:00:20 left",
    ]


def test_the_rate_is_that_of_the_last_minutes(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Meter("latents", 100_000, "latents") as meter:
        now += 100  # A model is compiled.
        for _ in range(40):
            now += 10
            meter.advance(500)
    lines = log.getvalue().splitlines()
    assert "500/100,000 latents, 4.5/s" in lines[0]
    assert "20,000/100,000 latents, 50.0/s, 0:26:40 left" in lines[-1]


def test_no_rate_yet(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with Meter("x", 10, "files") as meter:
        meter.advance(0)
    assert "-:--:-- left" in log.getvalue()


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, force_terminal=True, width=120))
    with Meter("ingest [/x]", 2000, "files", done=500) as meter:
        meter.advance(1500, note="[/y]")
    shown = file.getvalue()
    assert all(part in shown for part in ("ingest [/x]", "2,000/2,000", "[/y]"))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599.5, "1:00:00"), (360000, "100:00:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
