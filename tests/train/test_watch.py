"""The watch: what takes too long is named, what does not is not."""

import socket
import subprocess
import sys
import time

import pytest

from train import watch as module
from train.watch import Watch


def said(capsys: pytest.CaptureFixture[str], lines: int) -> list[str]:
    """Wait for so many lines on stderr."""
    text, start = "", time.monotonic()
    while text.count("\n") < lines:
        assert time.monotonic() - start < 10, text
        time.sleep(0.002)
        text += capsys.readouterr().err
    return text.splitlines()


def test_a_long_wait_is_named_again_after_twice_as_long(capsys: pytest.CaptureFixture[str]):
    start = time.monotonic()
    with Watch(0.05, rank=3) as watch, watch.doing("waiting for the loader, step 12"):
        lines = said(capsys, 3)  # Due after 0.05, 0.1 and 0.2 s.
    assert len(lines) == 3
    assert time.monotonic() - start >= 0.2
    for line in lines:
        assert line.startswith(f"rank 3 on {socket.gethostname()}: waiting for the loader, step 12, for 0.")
    following = [line.partition("; the next line comes after ")[2] for line in lines]
    assert following == ["0.1 s", "0.2 s", "0.4 s"]


def test_many_short_ones_are_not_named(capsys: pytest.CaptureFixture[str]):
    with Watch(0.15) as watch:
        for step in range(30):
            with watch.doing(f"step {step}"):
                time.sleep(0.01)
        time.sleep(0.2)  # Nothing is being done.
    assert capsys.readouterr().err == ""


def test_each_wait_is_timed_from_its_own_beginning(capsys: pytest.CaptureFixture[str]):
    with Watch(0.1) as watch:
        with watch.doing("the first"):
            said(capsys, 3)  # After 0.1, 0.2 and 0.4 s.
        start = time.monotonic()
        with watch.doing("the second"):
            (line,) = said(capsys, 1)
        past = time.monotonic() - start
    assert "the second, for 0.1" in line
    assert 0.1 <= past < 0.3  # The first would have been named again 0.4 s later.


def test_of_nested_ones_the_innermost_is_named(capsys: pytest.CaptureFixture[str]):
    with Watch(0.1) as watch, watch.doing("step 5"):
        with watch.doing("summing gradients"):
            assert "summing gradients, for" in said(capsys, 1)[0]
        assert "step 5, for" in said(capsys, 1)[0]


def test_an_error_passes_and_ends_the_wait(capsys: pytest.CaptureFixture[str]):
    with Watch(0.1) as watch:
        with pytest.raises(ZeroDivisionError), watch.doing("dividing"):
            _ = 1 / 0
        time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_a_thread_that_watches_does_not_keep_the_process():
    code = "from train.watch import Watch; Watch(60).__enter__(); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.123, "0.123 s"), (90.4, "90.4 s"), (300.2, "5 min"), (4800, "80 min")]
)
def test_durations(seconds: float, text: str):
    assert module._duration(seconds) == text
