"""Listing a folder with metadata beside the pictures."""

import os
from pathlib import Path
from typing import Any

import pytest

from curate.ingest import read_metadata
from curate.sources.folder import list_source
from curate.sources.listing import Found
from shared.corpus import Corpus
from shared.errors import UserError


def listing(root: Path | str) -> dict[str, dict[str, Any]]:
    rows = list_source(Corpus(str(root)), frozenset(["metadata.jsonl"])).read_all().to_pylist()
    found = {row["file"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_everything_is_a_candidate_but_metadata_and_hidden_files(tmp_path):
    touch(tmp_path, "b.png", "a/c.jpg", "a/c.txt", "a/d.png", "a/d.png.json", "a/d.json", "README.md", "a/alone.txt")
    touch(tmp_path, ".hidden.png", ".git/x.png", "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text("")
    found = listing(tmp_path)
    assert sorted(found) == ["README.md", "a/alone.txt", "a/c.jpg", "a/d.png", "b.png"]
    assert found["a/c.jpg"]["sidecars"] == ["a/c.txt"]
    assert found["a/d.png"]["sidecars"] == ["a/d.png.json", "a/d.json"]


def test_pictures_that_share_a_stem_share_the_sidecar(tmp_path):
    touch(tmp_path, "a.png", "a.jpg", "a.txt")
    assert [row["sidecars"] for row in listing(tmp_path).values()] == [["a.txt"], ["a.txt"]]


def test_links_are_followed_once_and_loops_end(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root, "z/a.png")
    touch(other, "b.png")
    (root / "a_link").symlink_to(root / "z")
    (root / "z" / "loop").symlink_to(root)
    (root / "out").symlink_to(other)
    (root / "file.png").symlink_to(root / "z" / "a.png")
    (root / "broken.png").symlink_to(root / "nowhere")
    found = listing(root)
    assert sorted(found) == ["broken.png", "file.png", "out/b.png", "z/a.png"]
    assert found["broken.png"]["error"] == "unreadable"


def test_what_cannot_be_listed_is_a_row(tmp_path, monkeypatch):
    touch(tmp_path, "good.png", "locked/x.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(os.fsencode(tmp_path) + b"/bad\xff.png", "wb"):  # noqa: PTH123
        pass
    scandir = os.scandir

    def refuse(path):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {location: (row["error"], row["detail"]) for location, row in listing(tmp_path).items()}
    assert found == {
        "good.png": (None, None),
        "bad\\xff.png": ("unreadable", "the name is not UTF-8"),
        "locked/": ("unreadable", "PermissionError: Permission denied"),
        "pipe.png": ("unreadable", "not a regular file"),
    }


@pytest.mark.parametrize("change", ["picture", "sidecar", "new sidecar"])
def test_the_stamp_follows_the_file_and_its_metadata(change, tmp_path):
    touch(tmp_path, "a.png", "a.txt", "b.png")
    before = listing(tmp_path)
    assert listing(tmp_path) == before
    if change == "picture":
        touch(tmp_path, "a.png")
        os.utime(tmp_path / "a.png", ns=(1, 1))
    elif change == "sidecar":
        (tmp_path / "a.txt").write_text("other")
    else:
        touch(tmp_path, "a.json")
    after = listing(tmp_path)
    assert after["a.png"]["stamp"] != before["a.png"]["stamp"]
    assert after["b.png"] == before["b.png"]


def test_tables_and_names_that_mislead_are_not_opened(tmp_path):
    touch(tmp_path, "posts.jsonl", "x.tar/a@1+2", "00.tar", "00.parquet", "00_stats.json")
    found = {name: row["error"] for name, row in listing(tmp_path).items()}
    assert found == {"posts.jsonl": "not_an_image", "x.tar/a@1+2": "unreadable", "00.tar": None}
    assert listing(tmp_path)["00.tar"]["sidecars"] == ["00.parquet", "00_stats.json"]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no files in this folder"):
        listing(tmp_path)


def test_an_object_store_gives_the_same_listing(s3, upload, tmp_path):
    touch(tmp_path, "b.png", "a/c.jpg", "a/c.txt", "a/deep/d.png", ".hidden", "a/.x/e.png", "0.tar", "0.parquet")
    upload(tmp_path, s3)
    here, there = listing(tmp_path), listing(s3)
    same = ("file", "size", "sidecars", "error")
    assert [[row[key] for key in same] for row in there.values()] == [
        [row[key] for key in same] for row in here.values()
    ]
    assert listing(s3) == there
    touch(tmp_path, "new.png")
    (tmp_path / "a" / "c.txt").write_text("other")
    upload(tmp_path, s3)
    stamps = {name: row["stamp"] for name, row in listing(s3).items()}
    changed = {name for name, row in there.items() if stamps[name] != row["stamp"]}
    assert (stamps.keys() - there.keys(), changed) == ({"new.png"}, {"a/c.jpg"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[1]"),
        ("a.json", b"[" * 100_000),
        ("a.txt", b"\xff\xfe"),
        ("a.json", b'{"rating": 5}'),
    ],
    ids=range(5),
)
def test_unreadable_sidecars_leave_an_error_and_what_others_say(name, content):
    files = {name: content, "a.png.json": b'{"score": 1}'}
    row = read_metadata([Found(name), Found("a.png.json")], lambda found: files[found.name])
    assert row["score"] == 1
    assert row["metadata_error"].startswith(f"{name}: ")
    assert row["metadata_error"].count(";") == 0


def test_a_sidecar_that_cannot_be_read_leaves_an_error():
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    row = read_metadata([Found("a.json")], refuse)
    assert row == {"metadata_error": "a.json: PermissionError: Permission denied"}
