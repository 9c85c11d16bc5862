"""Records of a run: a resumed one leaves those of an uninterrupted one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from train.records import Records, read


def test_a_resumed_run_leaves_a_record_for_each_step(tmp_path: Path):
    path = tmp_path / "runs" / "default" / "some.jsonl"
    records = Records(path, 0)
    for step in (0, 2, 4):
        records.add({"step": step, "loss": 0.1 * step})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # The process was killed here.
    resumed = Records(path, 4)
    assert [record["step"] for record in read(path)] == [0, 2]
    resumed.add({"step": 4, "loss": 9.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 0.0}, {"step": 2, "loss": 0.2}, {"step": 4, "loss": 9.0}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_named(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    records = Records(path, 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"some\.jsonl: No space left on device; .*make room"):
        records.add({"step": 0, "loss": 1.0})


def test_no_file_has_no_records(tmp_path: Path):
    assert read(tmp_path / "none.jsonl") == []


@given(cut=st.integers(0, 100))
def test_whole_lines_of_a_file_that_is_cut_off_are_read(tmp_path_factory, cut: int):
    path = tmp_path_factory.mktemp("cut") / "some.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) for step in range(4)]
    text = "".join(line + "\n" for line in lines)[:cut]
    path.write_text(text)
    whole = [json.loads(line) for line in text.split("\n") if line in lines]
    assert read(path) == whole
