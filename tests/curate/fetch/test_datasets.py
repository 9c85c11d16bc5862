"""Datasets are streamed into tars: bytes as they are, rows in order, each once."""

import datetime
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch import datasets as module
from curate.fetch import fetch
from curate.fetch.settings import FetchSettings
from curate.fetch.tars import read_failures
from shared.engine import LocalEngine
from shared.errors import UserError

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "tags": datasets.List(datasets.Value("string")),
        "score": datasets.Value("float64"),
        "rating": datasets.ClassLabel(names=["general", "sensitive"]),
        "date": datasets.Value("timestamp[s]"),
        "thumbnail": datasets.Value("binary"),
    }
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    module._open.cache_clear()


@pytest.fixture
def saved(tmp_path, make) -> Path:
    """Three Parquet files of five rows, one of which has no picture; others are only paths."""
    (tmp_path / "loose.png").write_bytes(make.png(2))
    rows = [
        {
            "image": {"bytes": make.png(n), "path": f"{n}.png"},
            "tags": ["a", f"b{n}"],
            "score": float("nan") if n == 4 else n / 2,
            "rating": n % 2,
            "date": datetime.datetime(2020, 1, 1 + n),
            "thumbnail": b"\xff",
        }
        for n in range(15)
    ]
    rows[1]["image"] = None
    rows[2]["image"] = {"bytes": None, "path": str(tmp_path / "loose.png")}
    rows[3]["image"] = {"bytes": None, "path": str(tmp_path / "missing.png")}
    root = tmp_path / "dataset"
    root.mkdir()
    table = pa.Table.from_pylist(rows, FEATURES.arrow_schema)
    for number in range(3):
        pq.write_table(table.slice(5 * number, 5), root / f"{number}.parquet", row_group_size=2)
    return root


def run(root: object, folder: Path, **settings: object) -> list[Path]:
    fetch(f"datasets:{root}", folder, FetchSettings(**{"rows": 2} | settings), LocalEngine(1))
    return sorted(folder.glob("*.tar"))


def test_bytes_and_metadata_of_every_row(saved, tmp_path, make):
    tars = run(saved, tmp_path / "out")
    assert [tar.name for tar in tars] == [f"tar-{part:05}-{number:05}.tar" for part in range(3) for number in range(3)]
    found = [one for tar in tars for one in make.read(tar).values()]
    assert [data for data, _ in found] == [make.png(n) for n in range(15) if n not in (1, 3)]
    assert found[0][1] == {
        "file_name": "0.png",
        "tags": ["a", "b0"],
        "score": 0.0,
        "rating": "general",
        "date": "2020-01-01 00:00:00",
    }
    assert "score" not in found[2][1]
    failed = [(one.url, one.reason) for tar in tars for one in read_failures(tar).values()]
    assert failed == [("dataset, part 0, row 1", "no_image"), ("dataset, part 0, row 3", "unreadable")]


def test_a_folder_of_pictures(tmp_path, make):
    root = tmp_path / "folder"
    root.mkdir()
    for n in range(3):
        (root / f"{n}.png").write_bytes(make.png(n))
    lines = [f'{{"file_name": "{n}.png", "text": "picture {n}"}}' for n in range(3)]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    [tar] = run(root, tmp_path / "out", rows=10, caption="text")
    assert list(make.read(tar).values()) == [
        (make.png(n), {"file_name": f"{n}.png", "caption": f"picture {n}"}) for n in range(3)
    ]


def test_a_dataset_saved_to_disk(saved, tmp_path, make):
    loaded = datasets.load_dataset(str(saved), split="train", cache_dir=str(tmp_path / "cache"))
    loaded.select(range(4, 15)).save_to_disk(tmp_path / "saved")
    tars = run(tmp_path / "saved", tmp_path / "out", rows=4)
    assert [data for tar in tars for data, _ in make.read(tar).values()] == [make.png(n) for n in range(4, 15)]


@pytest.mark.parametrize("stop", range(1, 9))
def test_stopped_anywhere_it_goes_on_there(stop, saved, tmp_path, make, monkeypatch):
    written, write = [], module.write_tar

    def fail(tar, rows):
        if len(written) == stop:
            next(iter(rows))
            raise KeyboardInterrupt
        written.append(tar)
        return write(tar, rows)

    monkeypatch.setattr(module, "write_tar", fail)
    with pytest.raises(KeyboardInterrupt):
        run(saved, tmp_path / "out")
    monkeypatch.setattr(module, "write_tar", lambda tar, rows: (written.append(tar), write(tar, rows))[1])
    tars = run(saved, tmp_path / "out", rows=7)  # The rows of a tar stay those with which it was begun.
    assert sorted(written) == tars  # Each once.
    monkeypatch.setattr(module, "write_tar", write)
    assert [tar.read_bytes() for tar in tars] == [tar.read_bytes() for tar in run(saved, tmp_path / "whole")]
    monkeypatch.setattr(module, "_open", None)
    assert run(saved, tmp_path / "out") == tars  # Nothing is opened where all is there.


def test_a_broken_file_costs_its_own_rows_only(saved, tmp_path, make):
    data = bytearray((saved / "1.parquet").read_bytes())
    data[4:200] = b"\xff" * 196
    (saved / "1.parquet").write_bytes(data)
    tars = run(saved, tmp_path / "out", rows=5)
    assert [data for tar in tars for data, _ in make.read(tar).values()][3:] == [make.png(n) for n in range(10, 15)]
    [broken] = read_failures(tars[1]).values()
    assert (broken.url, broken.reason) == ("dataset, part 1, row 0", "unreadable")
    assert broken.detail.endswith("nothing behind it could be read")


def test_what_changed_is_not_mixed(saved, tmp_path):
    run(saved, tmp_path / "out")
    (saved / "2.parquet").touch()
    with pytest.raises(UserError, match=r"has changed since fetching began; to fetch it anew, remove .*/out"):
        run(saved, tmp_path / "out")


def test_a_lost_connection_stops_and_the_next_run_goes_on(saved, tmp_path, monkeypatch):
    whole = run(saved, tmp_path / "whole")

    class Lost:
        """Breaks in the middle of the second part."""

        def __init__(self, rows):
            self.rows = rows

        def __getattr__(self, name):
            return getattr(self.rows, name)

        def shard(self, parts, part):
            rows = self.rows.shard(parts, part)
            return rows.map(lambda row: self.lose(row)) if part == 1 else rows

        def lose(self, row):
            if row["image"]["path"] == "8.png":
                raise ConnectionError("lost")
            return row

    opened = module._open
    monkeypatch.setattr(module, "_open", lambda *given: opened(*given)._replace(rows=Lost(opened(*given).rows)))
    with pytest.raises(UserError, match="lost; finished tars are kept"):
        run(saved, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
    monkeypatch.setattr(module, "_open", opened)
    assert [tar.read_bytes() for tar in run(saved, tmp_path / "out")] == [tar.read_bytes() for tar in whole]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "picture"}, "no column 'picture'; name it with --set fetch.image=COLUMN, there are: image, tags"),
        ({"split": "test"}, "no split 'test'; name one with --set fetch.split=NAME: train"),
        ({"columns": ("artist",)}, "no column 'artist', there are: image, tags"),
        ({"config": "large"}, "BuilderConfig 'large' not found"),
    ],
)
def test_settings_that_do_not_fit(settings, message, saved, tmp_path):
    with pytest.raises(UserError, match=message):
        run(saved, tmp_path / "out", **settings)


def test_the_column_must_be_clear(tmp_path, make):
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "c": datasets.Value("int32")})
    picture = {"bytes": make.png(1), "path": None}
    rows = datasets.Dataset.from_list([{"a": picture, "b": picture, "c": 1}], features=features)
    (tmp_path / "two").mkdir()
    rows.to_parquet(tmp_path / "two" / "0.parquet")
    with pytest.raises(UserError, match=r"several columns of pictures \(a, b\); name it with"):
        run(tmp_path / "two", tmp_path / "out")
    [tar] = run(tmp_path / "two", tmp_path / "out", image="b")
    assert list(make.read(tar).values()) == [(make.png(1), {"c": 1})]


def test_names_that_are_not_found(tmp_path):
    with pytest.raises(UserError, match=r"datasets:nobody/nothing: no such folder, and not found on the hub"):
        run("nobody/nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"datasets:.*/empty: "):
        run(tmp_path / "empty", tmp_path / "out")
