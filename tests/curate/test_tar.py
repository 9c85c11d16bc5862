"""Tars are read in place, and what is wrong with one is said."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from curate.ingest import pictures
from curate.sources.tar import index


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


MEMBERS = [
    ("b.png", b"1"),
    ("b.json", b"{}"),
    ("deep/a.webp", b"22" * 700),
    ("deep/" + "n" * 200 + ".jpg", b""),
    ("\u00e9.gif", b"3"),
]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_where_the_index_says(form, tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS, form)
    data, found = path.read_bytes(), index(path)
    assert found.problem is None
    assert [(one.name, data[one.offset : one.offset + one.size]) for one in found.members] == MEMBERS


def test_tars_of_webdataset(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(5):
            writer.write({"__key__": f"{number:05}", "png": bytes([number]), "json": {"score": number}, "txt": "a, b"})
    found = list(pictures(index(tmp_path / "0.tar").members))
    assert [one.name for one in found] == [f"{number:05}.png" for number in range(5)]
    assert [[beside.name for beside in one.sidecars] for one in found][1] == ["00001.json", "00001.txt"]


def test_the_second_member_of_a_name_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", b"{}"), ("a.png", b"2"), ("a.json", b"[]")])
    found = [(one.name, one.size, one.error, len(one.sidecars)) for one in pictures(index(path).members)]
    assert found == [("a.png", 1, None, 1), ("a.png", 1, "duplicate_member", 0), ("a.json", 2, "duplicate_member", 0)]


def test_links_are_told(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo(f"kind{kind.decode()}")
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    assert [(one.name, one.detail) for one in index(tmp_path / "a.tar").members] == [
        ("kind2", "not a regular file"),
        ("kind1", "not a regular file"),
    ]


def test_wherever_a_tar_is_cut_it_is_told(tmp_path):
    """The two blocks of zeros behind the last member are the only end there is."""
    data = write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    whole = index(tmp_path / "whole.tar")
    last = max(one.offset + one.size for one in whole.members)
    end = -(-last // 512) * 512
    for length in (*range(0, end, 100), *range(512, end + 1, 512), end, end + 511):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        found = index(tmp_path / "cut.tar")
        assert found.problem, length
        assert found.members == whole.members[: len(found.members)]
    (tmp_path / "cut.tar").write_bytes(data[: end + 512])
    assert index(tmp_path / "cut.tar") == whole


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty file, behind 0 members"),
        (b"\x1f\x8b" + bytes(600), "behind 0 members"),
        (b"not a tar" * 100, "behind 0 members"),
    ],
    ids=range(3),
)
def test_what_is_no_tar(data, problem, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    found = index(tmp_path / "a.tar")
    assert found.members == []
    assert problem in found.problem


def test_damage_in_the_middle_and_tars_that_were_joined(tmp_path):
    data = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("b.png", b"2")]).read_bytes()
    (tmp_path / "b.tar").write_bytes(data[:1024] + b"?" * 512 + data[1536:])
    damaged = index(tmp_path / "b.tar")
    assert [one.name for one in damaged.members] == ["a.png"]
    assert (
        damaged.problem == "behind 1 members, at byte 1024 of 10240, there is no readable header: truncated or damaged"
    )
    (tmp_path / "c.tar").write_bytes(data + data)
    joined = index(tmp_path / "c.tar")
    assert [one.name for one in joined.members] == ["a.png", "b.png"]
    assert "must be read one by one" in joined.problem
