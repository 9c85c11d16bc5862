"""Small corpora, runs of `curate`, and stages on tables made by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from curate.dedupe.descriptor import describe
from curate.ingest import INGEST
from curate.metadata import UNITED
from curate.pixels import PIXELS
from curate.run import run
from curate.work import Work
from shared.engine import LocalEngine
from shared.pipelines import load
from shared.stages import DECISIONS, Job, Stage

PIPELINES = """
test:
  stages:
    curate.ingest: {shard_rows: 8}
    curate.posts: {}
    curate.metadata: {}
    curate.pixels: {}
    curate.dedupe.exact: {}
    curate.dedupe.near: {}
    curate.merge: {}
    curate.filter: {min_side: 32, max_aspect: 3}
    caption.compose: {}
"""


def draw(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A drawing on white that is like no other."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = random.integers(0, 70, 2).tolist()
        width, height = random.integers(8, 40, 2).tolist()
        shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
        shape((x, y, x + width, y + height), fill=tuple(random.integers(0, 255, 3).tolist()), outline="black")
    return image.resize(size, Image.Resampling.LANCZOS)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    root = tmp_path / "corpus"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for seed in range(12):
        draw(seed).save(root / f"{seed:02}.png")
    draw(0, (64, 64)).save(root / "sub" / "resized.png")
    draw(1).save(root / "sub" / "reencoded.jpg", quality=90)
    draw(2).save(root / "sub" / "same_pixels.bmp")
    (root / "sub" / "deeper" / "copy.png").write_bytes((root / "03.png").read_bytes())
    draw(90, (24, 24)).save(root / "tiny.png")
    draw(91, (400, 40)).save(root / "wide.png")
    Image.new("RGB", (96, 96), "teal").save(root / "flat.png")
    Image.new("RGB", (96, 96), "navy").save(root / "flat2.png")
    draw(92).save(root / "moves.gif", save_all=True, append_images=[draw(93)])
    (root / "empty.png").touch()
    (root / "README.md").write_text("not a picture")
    (root / "cut.png").write_bytes((root / "04.png").read_bytes()[:600])
    draw(94).save(root / ".hidden" / "unseen.png")
    (root / "00.json").write_text(json.dumps({"tag_string": "1girl smile", "rating": "g", "score": 3}))
    (root / "sub" / "resized.txt").write_text("smile, long hair")
    (root / "05.txt").write_text("loli, solo")
    (root / "06.png.json").write_text(json.dumps({"tags": ["loli"], "rating": "general"}))
    (root / "07.json").write_text(json.dumps({"rating": "explicit", "tags": {"artist": ["somebody"]}}))
    return root


@pytest.fixture
def pipelines(tmp_path: Path) -> Path:
    file = tmp_path / "pipelines.yaml"
    file.write_text(PIPELINES)
    return file


Curate = Callable[..., "Result"]


class Result:
    """A work directory and what is in it."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def curated(self) -> list[dict[str, Any]]:
        return pq.read_table(self.work / "curated").to_pylist()

    def rejects(self) -> list[dict[str, Any]]:
        return pq.read_table(self.work / "rejects.parquet").to_pylist()

    def reasons(self) -> dict[str, str]:
        return {location: row["reason"] for row in self.rejects() for location in row["locations"]}

    def kept(self) -> dict[str, dict[str, Any]]:
        return {location: row for row in self.curated() for location in row["locations"]}

    def files(self) -> dict[str, bytes]:
        """Every file by its path; files whose names start with a dot are nobody's business."""
        paths = [path for path in self.work.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.work)): path.read_bytes() for path in paths}

    def times(self) -> dict[str, int]:
        return {name: (self.work / name).stat().st_mtime_ns for name in self.files()}


@pytest.fixture
def curate(pipelines: Path, tmp_path: Path) -> Curate:
    """Run a source through the test pipeline."""

    def start(source: Path, *overrides: str, work: str = "work", workers: int = 1) -> Result:
        folder = tmp_path / work
        run(str(source), load(pipelines, "test", overrides), Work(folder), LocalEngine(workers))
        return Result(folder)

    return start


KNOWN = {"ingest": INGEST, "metadata": UNITED, "pixels": PIXELS}


@pytest.fixture
def write_tables(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Write tables given as rows, and give their folders; columns that are left out are null."""

    def write(
        tables: Mapping[str, Sequence[Mapping[str, Any]]], schemas: Mapping[str, pa.Schema] = {}
    ) -> dict[str, Path]:
        folders = {}
        if "ingest" in tables:
            readable = [row for row in tables["ingest"] if not row.get("error")]
            tables = {"metadata": readable, "pixels": []} | dict(tables)
        for name, rows in tables.items():
            folders[name] = tmp_path / name
            folders[name].mkdir(exist_ok=True)
            table = pa.Table.from_pylist(list(rows), (KNOWN | dict(schemas)).get(name, DECISIONS))
            pq.write_table(table, folders[name] / "part-00000.parquet")
        return folders

    return write


@pytest.fixture
def run_stage(tmp_path: Path, write_tables: Callable[..., dict[str, Path]]) -> Callable[..., list[dict[str, Any]]]:
    """Run one stage on tables given as rows."""

    def start(
        stage: Stage[Any],
        tables: Mapping[str, Sequence[Mapping[str, Any]]],
        schemas: Mapping[str, pa.Schema] = {},
        **settings: Any,
    ) -> list[dict[str, Any]]:
        folders = write_tables(tables, schemas)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        deciders = tuple(name for name in tables if name not in KNOWN | dict(schemas))
        stage.run(
            Job(
                source="",
                settings=stage.settings(**settings),
                folder=out,
                tables=folders,
                deciders=deciders,
                engine=LocalEngine(1),
            )
        )
        return pq.read_table(out).to_pylist()

    return start


def picture(image_id: str, **columns: Any) -> dict[str, Any]:
    """A row of `ingest`."""
    plain = {
        "file": f"{image_id}.png",
        "location": f"{image_id}.png",
        "stamp": "",
        "image_id": image_id,
        "width": 100,
        "height": 100,
        "bytes": 1000,
        "format": "PNG",
        "frames": 1,
        "pixel_hash": image_id,
        "phash": 0,
        "descriptor": describe(draw(0)),
        "flatness": 0.5,
        "tags": [],
    }
    return plain | columns


def tags(*names: str, category: str = "general") -> list[dict[str, str]]:
    return [{"name": name, "category": category, "origin": "source"} for name in names]


def kept(*image_ids: str) -> list[dict[str, Any]]:
    """Decisions to keep."""
    return [{"image_id": image_id, "keep": True} for image_id in image_ids]


@pytest.fixture
def make() -> Any:
    """The functions above, for tests (which cannot import a conftest)."""

    class Make:
        draw = staticmethod(draw)
        picture = staticmethod(picture)
        tags = staticmethod(tags)
        kept = staticmethod(kept)

    return Make
