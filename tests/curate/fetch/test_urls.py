"""URLs become tars, each fetched once, whatever the web does."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch import fetch, is_fetched
from curate.fetch.settings import FetchSettings
from curate.fetch.tars import read_failures
from curate.ingest import STAGE, IngestSettings
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import Job

KILLED = """
import sys
from pathlib import Path
from types import ModuleType

sys.modules["webdataset"] = ModuleType("webdataset")  # It brings in PyTorch, which takes seconds; not needed here.

from curate.fetch import fetch
from curate.fetch.settings import FetchSettings
from shared.engine import LocalEngine

fetch(sys.argv[1], Path(sys.argv[2]), FetchSettings(rows=2, threads=1), LocalEngine(1))
"""


def run(path: Path, folder: Path, **settings: object) -> list[Path]:
    assert is_fetched(str(path))
    fetch(str(path), folder, FetchSettings(**{"timeout": 1, "threads": 4} | settings), LocalEngine(1))
    return sorted(folder.glob("*.tar"))


def write_txt(path: Path, urls: list[str]) -> Path:
    path.write_text("\n".join(urls))
    return path


def test_everything_that_can_happen(server, tmp_path, make):
    rows = [
        ["/ok/1", "first", "1girl, solo"],
        ["/missing", "", ""],
        ["/flaky/a", "third time lucky", ""],
        ["/stall", "", ""],
        ["/cut", "", ""],
        ["/html", "", ""],
        ["/redirect", "", ""],
        ["/noai", "", ""],
        ["/ok/1", "again", ""],
        ["/\u7d75 \u00e9.png?tag=a%26b", "not ASCII", ""],
    ]
    path = tmp_path / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["link", "what", "tags"])
        writer.writerows([server.url(url), what, tags] for url, what, tags in rows)
        writer.writerows([["", "no address", ""], ["file:///etc/passwd", "", ""], ["http://a/", "b", "c", "d"]])
    [tar] = run(path, tmp_path / "out", url="link", caption="what")

    found = make.read(tar)
    assert {name: data for name, (data, _) in found.items()} == {
        "000000.png": make.png(1),
        "000002.png": make.png(200),
        "000005.bin": b"<!DOCTYPE html><title>sign in</title>",
        "000006.png": make.png(7),
        "000008.png": make.png(202),
    }
    assert found["000000.png"][1] == {"url": server.url("/ok/1"), "caption": "first", "tags": "1girl, solo"}
    assert found["000008.png"][1]["url"] == server.url("/\u7d75 \u00e9.png?tag=a%26b")

    failed = {one.url.removeprefix(server.url("")): one for one in read_failures(tar).values()}
    assert {url: (one.reason, one.transient) for url, one in failed.items()} == {
        "/missing": ("not_downloaded", False),
        "/stall": ("not_downloaded", True),
        "/cut": ("not_downloaded", True),
        "/noai": ("not_downloaded", False),
        "list.csv, line 12": ("no_url", False),
        "file:///etc/passwd": ("not_a_url", False),
        "list.csv, line 14": ("bad_row", False),
    }
    assert failed["/missing"].detail == "HTTP Error 404: Not Found"
    assert "timed out" in failed["/stall"].detail
    assert failed["/cut"].detail == "IncompleteRead(40 bytes read, 960 more expected)"
    assert failed["list.csv, line 14"].detail == "4 cells, but 3 columns"
    assert server.requests["/ok/1"] == server.requests["/missing"] == server.requests["/noai"] == 1
    assert server.requests["/stall"] == server.requests["/cut"] == server.requests["/flaky/a"] == 3


def test_formats_of_lists(server, tmp_path, make):
    rows = [{"url": server.url(f"/ok/{n}"), "score": n / 2, "tags": ["a", "b"]} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n\n{"url": 5}\n[1]\nno JSON\n{"x": 1}\n')
    table = pa.Table.from_pylist([row | {"thumbnail": b"\xff", "nothing": float("nan")} for row in rows])
    pq.write_table(table, tmp_path / "a.parquet")
    write_txt(tmp_path / "a.txt", [row["url"] for row in rows])

    [jsonl] = run(tmp_path / "a.jsonl", tmp_path / "1")
    [parquet] = run(tmp_path / "a.parquet", tmp_path / "2")
    [txt] = run(tmp_path / "a.txt", tmp_path / "3")
    [few] = run(tmp_path / "a.jsonl", tmp_path / "4", columns=("score",), threads=1)
    expected = {f"{n:06}.png": (make.png(n), row) for n, row in enumerate(rows)}
    assert make.read(jsonl) == make.read(parquet) == expected
    assert parquet.read_bytes() == run(tmp_path / "a.parquet", tmp_path / "5", threads=1)[0].read_bytes()
    assert make.read(txt) == {name: (data, {"url": row["url"]}) for name, (data, row) in expected.items()}
    assert [row.keys() for _, row in make.read(few).values()] == [{"url", "score"}] * 3
    assert [(one.url, one.reason) for one in read_failures(jsonl).values()] == [
        ("a.jsonl, line 5", "no_url"),
        ("a.jsonl, line 6", "bad_row"),
        ("a.jsonl, line 7", "bad_row"),
        ("a.jsonl, line 8", "no_url"),
    ]


def test_rows_that_come_later_are_the_only_ones_fetched(server, tmp_path, make, monkeypatch):
    urls = [server.url(f"/ok/{n}") for n in range(8)]
    path, out = tmp_path / "list.txt", tmp_path / "out"
    first = run(write_txt(path, urls[:5]), out, rows=2)
    before = {tar: (tar.stat().st_mtime_ns, tar.read_bytes()) for tar in first}
    assert [tar.name for tar in first] == [f"tar-00000-{n:05}.tar" for n in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr("curate.fetch.urls.read_list", None)  # A list that has not changed is not read again.
        assert run(path, out, rows=2) == first

    both = run(write_txt(path, [urls[7], *urls]), out, rows=3)
    assert [tar.name for tar in both[3:]] == ["tar-00001-00000.tar"]
    assert {tar: (tar.stat().st_mtime_ns, tar.read_bytes()) for tar in first} == before
    assert [row["url"] for _, row in make.read(both[3]).values()] == [urls[7], urls[5], urls[6]]
    assert set(server.requests.values()) == {1}
    assert len(server.requests) == 8


def test_what_failed_is_tried_again_on_request(server, tmp_path, make):
    paths = ["/ok/1", "/later", "/missing"]
    path, out = write_txt(tmp_path / "list.txt", [*map(server.url, paths), server.url("/ok/2")]), tmp_path / "out"
    first, second = run(path, out, rows=3, retries=0)
    assert [one.transient for one in read_failures(first).values()] == [True, False]
    untouched = second.stat().st_mtime_ns
    run(path, out, rows=3, retries=0)
    assert server.requests["/later"] == 1

    run(path, out, rows=3, retries=0, retry_failed=True)
    assert server.requests == {"/ok/1": 1, "/later": 2, "/missing": 1, "/ok/2": 1}
    assert list(make.read(first)) == ["000000.png", "000001.png"]
    assert [one.detail for one in read_failures(first).values()] == ["HTTP Error 404: Not Found"]
    assert second.stat().st_mtime_ns == untouched
    assert first.read_bytes() == run(path, tmp_path / "other", rows=3)[0].read_bytes()


def test_killed_it_goes_on_where_it_stopped(server, tmp_path, make):
    path, out = write_txt(tmp_path / "list.txt", [server.url(f"/ok/{n}") for n in range(6)]), tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, str(script), str(path), str(out)], env=environment)
    server.hooks["/ok/3"] = lambda: process.send_signal(signal.SIGKILL)
    assert process.wait(120) == -signal.SIGKILL
    server.hooks.clear()
    assert [tar.name for tar in out.glob("*.tar")] == ["tar-00000-00000.tar"]
    (out / ".tar-00000-00001.tar.1234.tmp").write_bytes(b"half")  # As it is killed while it writes.

    tars = run(path, out, rows=2)
    assert [row["url"][-5:] for tar in tars for _, row in make.read(tar).values()] == [f"/ok/{n}" for n in range(6)]
    assert [server.requests[f"/ok/{n}"] for n in range(6)] == [1, 1, 2, 2, 1, 1]
    assert not list(out.glob(".*.tmp"))
    assert [tar.read_bytes() for tar in tars] == [tar.read_bytes() for tar in run(path, tmp_path / "b", rows=2)]


def test_ingest_reads_what_was_fetched(server, tmp_path):
    path = write_txt(tmp_path / "list.txt", [server.url(url) for url in ("/ok/1", "/missing", "/html")])
    run(path, tmp_path / "out")
    job = Job(
        source=str(tmp_path / "out"),
        settings=IngestSettings(),
        folder=tmp_path / "ingest",
        tables={},
        deciders=(),
        engine=LocalEngine(1),
    )
    STAGE.run(job)
    rows = [row for part in (tmp_path / "ingest").glob("part-*") for row in pq.read_table(part).to_pylist()]
    assert sorted((row["error"] or "", row["format"] or "") for row in rows) == [
        ("", "PNG"),
        ("not_an_image", ""),
        ("not_downloaded", ""),
    ]
    assert all(row["metadata_error"] is None for row in rows)
    assert server.url("/missing") in [row["location"] for row in rows]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "link,b\nhttp://a/b,c\n", "no column 'url', there are: link, b; name them with --set fetch.url=NAME"),
        ("a.csv", "", "no column 'url'"),
        ("a.csv", "url\n", "it has no rows"),
        ("a.jsonl", '{"link": "http://a/b"}\n', "no URLs in 'url': url is None; name the column with"),
        ("a.parquet", "no Parquet", "cannot read this list of URLs"),
    ],
)
def test_lists_that_cannot_be_used(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        run(tmp_path / name, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_what_is_fetched(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert not is_fetched(str(tmp_path / "folder.csv"))
    assert not is_fetched("s3://bucket/pictures")
    assert is_fetched("datasets:somebody/something")
    with pytest.raises(UserError, match=r"no such file; a list of URLs is a file on this machine"):
        is_fetched(str(tmp_path / "list.csv"))
