import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.files import atomic_file, atomic_folder, file_sha256, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert names(path.parent)[0].startswith(".")
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_bytes_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/dev/fd/{fd}").resolve().name), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1])
    write_text(tmp_path / "a.txt", "x")
    temporary, *rest = events
    assert re.fullmatch(r"\.a\.txt\.[0-9a-f]{8}\.tmp", temporary)
    assert rest == ["replace", tmp_path.name]


def test_a_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from shared.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.parquet")], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.parquet")) == []
    assert all(name.startswith(".") for name in names(tmp_path))


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.mkdir()
    (path / "old").write_text("old")
    with atomic_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("new")
        assert (path / "old").read_text() == "old"
    assert names(path) == ["sub"]
    assert (path / "sub" / "new").read_text() == "new"
    assert names(tmp_path) == ["table"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "new").write_text("half")
        raise OSError("disk full")
    assert names(tmp_path) == ["table"]
    assert (path / "old").read_text() == "old"


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["table"]
    assert (path / "old").read_text() == "old"


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the first example of FIPS 180-2
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
