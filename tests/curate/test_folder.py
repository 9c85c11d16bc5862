"""Listing a folder with metadata beside the pictures."""

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.ingest import read_metadata
from curate.sources.folder import list_folder
from shared.errors import UserError


def listing(root: Path, metadata: Path | None = None) -> dict[str, dict]:
    return {row["location"]: row for row in list_folder(root, metadata).to_pylist()}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_everything_is_a_candidate_but_metadata_and_hidden_files(tmp_path):
    touch(tmp_path, "b.png", "a/c.jpg", "a/c.txt", "a/d.png", "a/d.png.json", "a/d.json", "README.md", "a/alone.txt")
    touch(tmp_path, ".hidden.png", ".git/x.png", "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text("")
    found = listing(tmp_path)
    assert list(found) == ["README.md", "a/alone.txt", "a/c.jpg", "a/d.png", "b.png"]
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
    assert list(found) == ["broken.png", "file.png", "out/b.png", "z/a.png"]
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


@pytest.mark.parametrize("change", ["picture", "sidecar", "new sidecar", "record"])
def test_the_stamp_follows_the_file_and_its_metadata(change, tmp_path):
    touch(tmp_path, "a.png", "a.txt", "b.png")
    (tmp_path / "metadata.csv").write_text("file,score\na.png,1\n")
    before = listing(tmp_path)
    assert listing(tmp_path) == before
    if change == "picture":
        touch(tmp_path, "a.png")
        os.utime(tmp_path / "a.png", ns=(1, 1))
    elif change == "sidecar":
        (tmp_path / "a.txt").write_text("other")
    elif change == "new sidecar":
        touch(tmp_path, "a.json")
    else:
        (tmp_path / "metadata.csv").write_text("file,score\na.png,2\n")
    after = listing(tmp_path)
    assert after["a.png"]["stamp"] != before["a.png"]["stamp"]
    assert after["b.png"] == before["b.png"]


ROWS = [
    {"file_name": "a.png", "caption": "A frog, green.", "tags": "frog;green"},
    {"file_name": "./sub/b.png", "score": 7},
]


SCHEMA = pa.schema({"file_name": "string", "caption": "string", "tags": "string", "score": "int32"})


def write_table(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "caption", "tags", "score"])
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["root/metadata", "root/other", "outside"])
def test_tables(suffix, place, tmp_path):
    root = tmp_path / "root"
    touch(root, "a.png", "sub/b.png")
    table = tmp_path / f"{place}.{suffix}"
    write_table(table)
    found = listing(root, None if place == "root/metadata" else table)
    assert list(found) == ["a.png", "sub/b.png"]
    frog, other = (read_metadata(root, row) for row in found.values())
    assert frog["caption"] == "A frog, green."
    assert [tag["name"] for tag in frog["tags"]] == ["frog", "green"]
    assert (other["score"], other["metadata_error"]) == (7, None)


def test_names_are_relative_to_a_table_inside_the_source(tmp_path):
    touch(tmp_path, "sub/a.png")
    table = tmp_path / "sub" / "posts.csv"
    table.write_text(f"path,score\na.png,1\n{tmp_path}/sub/b.png,2\n")
    found = listing(tmp_path, table)
    assert json.loads(found["sub/a.png"]["record"])["score"] == "1"
    assert found["sub/b.png"]["error"] == "missing_file"


def test_bad_rows_are_kept_and_the_first_of_two_wins(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    good = ['{"file": "a.png", "score": 1}', '{"file": "a.png", "score": 2}']
    lines = [*good, "{", "5", '{"score": 1}', '{"file": "gone"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = listing(tmp_path)
    errors = {location: row["error"] for location, row in found.items()}
    assert errors == {
        "a.png": None,
        "b.png": None,
        "gone": "missing_file",
        "metadata.jsonl:3": "bad_metadata",
        "metadata.jsonl:4": "bad_metadata",
        "metadata.jsonl:5": "bad_metadata",
    }
    row = read_metadata(tmp_path, found["a.png"])
    assert row["score"] == 1
    assert row["metadata_error"] == "the metadata table has more than one row for this file"


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
def test_unreadable_sidecars_leave_an_error_and_what_others_say(name, content, tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "metadata.csv").write_text("file,score\na.png,1\n")
    row = read_metadata(tmp_path, listing(tmp_path)["a.png"])
    assert row["score"] == 1
    assert row["metadata_error"].startswith(f"{name}: ")


def test_sidecars_go_before_the_table_and_are_completed_by_it(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "a.json").write_text('{"score": 1}')
    (tmp_path / "a.txt").write_text("from text")
    (tmp_path / "metadata.csv").write_text("file,score,tags,caption\na.png,2,from_table,A frog.\n")
    row = read_metadata(tmp_path, listing(tmp_path)["a.png"])
    assert (row["score"], row["caption"]) == (1, "A frog.")
    assert [tag["name"] for tag in row["tags"]] == ["from", "text"]


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ([], None, "no files in this folder"),
        (["a.png"], "nowhere.csv", "cannot read this metadata table"),
        (["a.png", "t.xlsx"], "t.xlsx", "a metadata table is one of .csv, .jsonl, .parquet"),
        (["a.png", "t.parquet"], "t.parquet", "cannot read this metadata table"),
        (["a.png", "metadata.csv", "metadata.jsonl"], None, "choose one with --set ingest.metadata=PATH"),
    ],
)
def test_user_errors(files, table, message, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        list_folder(tmp_path, table and tmp_path / table)


def test_a_table_that_names_no_files_says_what_it_has(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("picture,score\na.png,1\n")
    with pytest.raises(UserError, match="there are: picture, score"):
        list_folder(tmp_path, None)
