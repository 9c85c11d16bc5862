"""The stage `ingest`: the same rows wherever pictures lie, and what is new alone is read."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import ingest as stage
from curate.ingest import INGEST, IngestSettings
from shared.corpus import Corpus
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import Job, rows_of

PLACES = ("file", "stamp", "location")


def ingest(source: Path | str, folder: Path, workers: int = 1, **settings: Any) -> list[dict[str, Any]]:
    job = Job(
        source=str(source),
        settings=IngestSettings(**settings),
        folder=folder,
        tables={},
        deciders=(),
        engine=LocalEngine(workers),
    )
    stage.run(job)
    return duckdb.sql(f"SELECT * FROM ({rows_of(folder)}) ORDER BY location").to_arrow_table().to_pylist()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def encoded(image: Any, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def content(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on where pictures lie."""
    key = [name for name in INGEST.names if name not in PLACES]
    return sorted(({name: row[name] for name in key} for row in rows), key=lambda row: str(row["image_id"]))


@pytest.fixture
def files(make) -> dict[str, bytes]:
    """A sample of a corpus, by names as they are in a tar."""
    return {
        "0001.jpg": encoded(make.draw(1)),  # A PNG by another name.
        "0001.json": json.dumps({"tags": "1girl, smile", "rating": "g"}).encode(),
        "0001.txt": b"ignored, because the json has tags",
        "0002.webp": encoded(make.draw(2), "WEBP"),
        "0003.jpg": encoded(make.draw(3), "JPEG"),
        "0003.txt": b"1boy, solo",
        "sub/0004.gif": encoded(make.draw(4), "GIF"),
        "empty.png": b"",
        "page.jpg": b"<html>404</html>",
        "cut.jpg": encoded(make.draw(5), "JPEG")[:700],
    }


def test_a_folder_a_tar_and_an_object_store_give_the_same(files, s3, upload, tmp_path):
    folder, tars = tmp_path / "folder", tmp_path / "tars"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_tar(tars / "deep" / "00000.tar", files)
    upload(folder, f"{s3}/folder")
    upload(tars, f"{s3}/tars")
    expected = ingest(folder, tmp_path / "a")
    assert [(row["location"], row["error"]) for row in expected] == [
        ("0001.jpg", None),
        ("0002.webp", None),
        ("0003.jpg", None),
        ("cut.jpg", "undecodable"),
        ("empty.png", "empty_file"),
        ("page.jpg", "not_an_image"),
        ("sub/0004.gif", None),
    ]
    assert [tag["name"] for tag in expected[0]["tags"]] == ["1girl", "smile"]
    assert [row["format"] for row in expected][:3] == ["PNG", "WEBP", "JPEG"]
    for number, source in enumerate([tars, f"{s3}/folder", f"{s3}/tars"]):
        rows = ingest(source, tmp_path / f"b{number}")
        assert content(rows) == content(expected)
        corpus = Corpus(str(source))
        assert all(hashlib.sha256(corpus.read(row["location"])).hexdigest() == row["image_id"] for row in rows)


def test_md5_is_computed_on_demand(files, tmp_path):
    write_tar(tmp_path / "source" / "0.tar", {"0002.webp": files["0002.webp"]})
    assert ingest(tmp_path / "source", tmp_path / "a")[0]["md5"] is None
    found = ingest(tmp_path / "source", tmp_path / "b", md5=True)[0]["md5"]
    assert found == hashlib.md5(files["0002.webp"]).hexdigest()


def test_new_tars_alone_are_read(files, make, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "table"
    write_tar(source / "0.tar", files)
    write_tar(source / "1.tar", {"a.png": encoded(make.draw(7))})
    ingest(source, folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    write_tar(source / "2.tar", {"b.png": encoded(make.draw(8))})
    write_tar(source / "1.tar", {"c.png": encoded(make.draw(9))})
    rows = ingest(source, folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert times.items() <= after.items()
    assert len(after) == len(times) + 2
    fresh = ingest(source, tmp_path / "fresh")
    assert rows == fresh
    assert {row["file"] for row in rows} == {"0.tar", "1.tar", "2.tar"}


def test_the_cut_into_workers_and_shards_does_not_show(files, make, tmp_path):
    source = tmp_path / "source"
    for number in range(4):
        write_tar(
            source / f"{number}.tar", {f"{number}.png": encoded(make.draw(number)), "twin.png": files["0001.jpg"]}
        )
        (source / f"{number}.png").write_bytes(encoded(make.draw(10 + number)))
    expected = ingest(source, tmp_path / "a")
    assert len(expected) == 12
    assert ingest(source, tmp_path / "b", workers=2, shard_rows=3) == expected


def test_a_damaged_tar_gives_what_can_be_read_and_a_row(files, tmp_path):
    source = tmp_path / "source"
    write_tar(source / "0.tar", {"a.png": files["0001.jpg"], "b.webp": files["0002.webp"]})
    data = (source / "0.tar").read_bytes()
    place = data.index(files["0002.webp"])
    (source / "0.tar").write_bytes(data[: place + 100])
    rows = {row["location"].partition("@")[0]: row for row in ingest(source, tmp_path / "table")}
    assert {name: row["error"] for name, row in rows.items()} == {
        "0.tar": "damaged_tar",
        "0.tar/a.png": None,
        "0.tar/b.webp": "unreadable",
    }
    size = len(files["0002.webp"])
    assert rows["0.tar/b.webp"]["detail"] == f"100 of {size} bytes could be read"


def test_downloads_that_failed_are_rows(files, tmp_path):
    source = tmp_path / "source"
    write_tar(source / "0.tar", {"a.png": files["0001.jpg"]})
    table = {
        "url": ["http://a/1", "http://a/2"],
        "status": ["success", "failed_to_download"],
        "error_message": [None, "HTTP Error 404: Not Found"],
        "key": ["0", "1"],
    }
    pq.write_table(pa.table(table), source / "0.parquet")
    (source / "0_stats.json").write_text("{}")
    rows = [(row["location"].partition("@")[0], row["error"], row["detail"]) for row in ingest(source, tmp_path / "t")]
    assert rows == [("0.tar/a.png", None, None), ("http://a/2", "failed_to_download", "HTTP Error 404: Not Found")]


def test_films_are_not_read(files, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MAX_BYTES", 1000)
    source = tmp_path / "source"
    write_tar(source / "0.tar", {"a.png": files["0001.jpg"], "film.mp4": bytes(1001)})
    (source / "film.mp4").write_bytes(bytes(1001))
    errors = [row["error"] for row in ingest(source, tmp_path / "table")]
    assert errors.count("too_many_bytes") == 2 + (len(files["0001.jpg"]) > 1000)


def test_a_store_that_goes_away_is_an_error_and_loses_nothing(files, s3, upload, tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "table"
    for number in range(3):
        write_tar(source / f"{number}.tar", files)
    upload(source, s3)
    opened = Corpus.on_disk

    def lost(corpus, file):
        if file == "2.tar":
            monkeypatch.setattr(Corpus, "exists", lambda _: False)
            raise OSError(5, "connection lost")
        return opened(corpus, file)

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "on_disk", lost)
        with pytest.raises(UserError, match="the source has vanished; finished shards are kept"):
            ingest(s3, folder)
    assert sorted(path.name for path in folder.glob("part-*")) == [
        "part-00000-00000.parquet",
        "part-00000-00001.parquet",
    ]


def test_hostile_pictures_get_the_same_reasons_in_a_tar(shared_data, tmp_path):
    root = shared_data / "hostile_images"
    paths = [
        path for path in root.rglob("*") if path.is_file() and path.suffix not in (".json", ".txt", ".csv", ".tar")
    ]
    chosen = {str(path.relative_to(root)): path for path in sorted(paths)[::8]}
    for name, path in chosen.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).symlink_to(path)
    write_tar(tmp_path / "tars" / "0.tar", {name: path.read_bytes() for name, path in chosen.items()})
    limits = {"max_pixels": 20_000_000}
    expected = content(ingest(tmp_path / "folder", tmp_path / "a", workers=2, **limits))
    assert content(ingest(tmp_path / "tars", tmp_path / "b", **limits)) == expected
    assert len(expected) > 50
