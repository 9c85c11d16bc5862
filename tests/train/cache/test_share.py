"""Several processes, as a launcher starts them, make the cache that one makes, each a part of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.device import devices
from tests.train.cache.test_cache import files
from train.cache.share import Share
from train.cache.verify import verify


@given(st.integers(0, 40), st.integers(1, 9))
def test_every_item_is_of_one_process(items: int, count: int):
    found = [Share(rank, count).of(range(items)) for rank in range(count)]
    assert sorted(item for share in found for item in share) == list(range(items))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_devices_and_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert Share().devices == devices()
    monkeypatch.setattr("train.cache.share.devices", lambda: ["cuda:0", "cuda:1", "cuda:2"])
    assert [Share(rank, 6, rank % 3, 3).devices for rank in range(6)] == [["cuda:0"], ["cuda:1"], ["cuda:2"]] * 2
    assert (Share().cores, Share(1, 6, 1, 3).cores, Share(0, 99, 0, 99).cores) == (16, 5, 1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_one_that_dies_ends_the_others_and_more_go_on_to_the_bytes_of_one(
    curated: Path, cached: Path, tiny_model: Path, tmp_path: Path
):
    rounds = [f"{count},{dying},{free_port()}" for count, dying in ((2, 1), (3, -1))]
    words = ["--work", str(curated), "--model", str(tiny_model), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.cache.forked", str(tmp_path), *rounds, "--", *words],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == ["2 9", "0 0 0"]
    assert "rank 0: another of the 2 processes is gone" in done.stderr
    assert files(curated) == files(cached)
    assert verify(curated) == []
    made = [(tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(3)]
    assert all(any("/latents/" in part for part in parts) for parts in made)
    parts = sorted(str(part) for part in (curated / "cache").rglob("part-*.parquet"))
    assert sorted(part for found in made for part in found) == parts
