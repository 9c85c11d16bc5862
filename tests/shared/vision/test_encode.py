"""Shards of pictures through a model: every picture once, in its place, whatever is decoded when."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from shared.corpus import Corpus
from shared.errors import UserError
from shared.images import decode
from shared.vision import feeder as feeder_module
from shared.vision.encode import encode
from shared.vision.feeder import Feeder
from shared.vision.forward import Forward
from shared.vision.geometry import Geometry
from shared.worklist import WorkList

GEOMETRY = Geometry(8, "squash", "bicubic")
PICTURES = 90


class Means(nn.Module):
    def forward(self, pictures):
        return pictures.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each; every tenth is no picture, and one is not what it was."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(PICTURES):
        Image.new("RGB", (20, 30), (number, 2 * number, 255 - number)).save(folder / f"{number:03}.png")
        if number % 10 == 3:
            (folder / f"{number:03}.png").write_bytes(f"{number}".encode())
    return folder


@pytest.fixture
def items(source: Path) -> pa.Table:
    rows = []
    for path in sorted(source.iterdir()):
        rows.append({"image_id": hashlib.sha256(path.read_bytes()).hexdigest(), "locations": [path.name]})
    rows[7]["image_id"] = "0" * 64
    rows[8]["locations"] = ["gone.png", *rows[8]["locations"]]
    rows[9]["locations"] = ["gone.png"]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(("batch", "shard_rows", "models"), [(4, 32, 1), (50, 40, 1), (8, 7, 3)])
def test_every_picture_once_in_its_place(source, items, tmp_path, batch, shard_rows, models):
    work = WorkList(tmp_path, ("image_id",), shard_rows)
    work.extend(items)
    forwards = [Forward(Means(), (0, 0, 0), (1, 1, 1), torch.device("cpu"), "float32") for _ in range(models)]
    written = {}

    def write(shard, parts):
        assert shard not in written
        written[shard] = parts

    with Feeder(Corpus(str(source)), GEOMETRY, "reduced", 10**6, batch, workers=2, devices=models) as feeder:
        done = list(encode(work.shards(), feeder, forwards, batch, write))
    assert sorted(done, key=str) == sorted(work.shards(), key=str)
    ids, vectors, problems = [], [], []
    for shard in work.shards():
        for part in written[shard]:
            assert len(part.items) <= batch
            ids += [item["image_id"] for item in part.items]
            vectors.append(part.vectors)
            problems += part.problems
    assert ids == items["image_id"].to_pylist()
    reasons = {number: problem[0] for number, problem in enumerate(problems) if problem}
    assert reasons == dict.fromkeys(range(3, PICTURES, 10), "not_an_image") | {7: "changed", 9: "unreadable"}
    good = [number for number in range(PICTURES) if number not in reasons]
    expected = np.array([(number, 2 * number, 255 - number) for number in good]) / 255
    np.testing.assert_allclose(np.concatenate(vectors)[good], expected, atol=1e-6)


@pytest.mark.parametrize("models", [1, 2])
def test_an_error_of_the_model_ends_it(source, items, tmp_path, models):
    work = WorkList(tmp_path, ("image_id",), 16)
    work.extend(items)
    forwards = [Forward(nn.Conv2d(7, 7, 7), (0, 0, 0), (1, 1, 1), torch.device("cpu"), "float32")] * models
    with (
        Feeder(Corpus(str(source)), GEOMETRY, "reduced", 10**6, 8, workers=1) as feeder,
        pytest.raises(RuntimeError, match="channels"),
    ):
        list(encode(work.shards(), feeder, forwards, 8, lambda *_: None))


def test_a_process_that_dies_is_named(source, items):
    with Feeder(Corpus(str(source)), GEOMETRY, "reduced", 10**6, 8, workers=1) as feeder:
        batch = feeder.feed(items.slice(0, 8).to_pylist(), wait=True)
        batch.problems()
        for process in feeder._pool._processes.values():
            process.kill()
            process.join()
        with pytest.raises(UserError, match="start the command again to go on"):
            feeder.feed(items.slice(8, 8).to_pylist(), wait=True).problems()


def test_too_little_shared_memory_is_said_before(source, monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(feeder_module.os, "statvfs", lambda _: Full)
    with pytest.raises(UserError, match="set a smaller batch"):
        Feeder(Corpus(str(source)), GEOMETRY, "reduced", 10**6, 8, workers=1)


def test_jpegs_for_the_gpu_are_passed_on_as_they_are(tmp_path):
    noise = Image.effect_noise((60, 40), 80)
    noise.convert("RGB").save(tmp_path / "a.jpg", quality=90)
    noise.convert("RGB").save(tmp_path / "b.png")
    noise.convert("CMYK").save(tmp_path / "c.jpg")
    Image.effect_noise((2500, 2000), 80).save(tmp_path / "d.jpg", quality=100)  # More than there is room for.
    (tmp_path / "e.jpg").write_bytes(b"no picture")
    files = sorted(tmp_path.iterdir())
    items = [{"image_id": hashlib.sha256(path.read_bytes()).hexdigest(), "locations": [path.name]} for path in files]
    assert files[3].stat().st_size > feeder_module.ROOM
    with Feeder(Corpus(str(tmp_path)), GEOMETRY, "gpu", 10**7, 8, workers=1) as feeder:
        batch = feeder.feed(items, wait=True)
        assert {row: data.tobytes() for row, data in batch.jpegs().items()} == {0: files[0].read_bytes()}
        assert [problem and problem[0] for problem in batch.problems()] == [None] * 4 + ["not_an_image"]
        for row in (1, 2, 3):
            expected = GEOMETRY.apply(decode(files[row].read_bytes()).image)
            np.testing.assert_array_equal(batch.pixels[row], expected)
        feeder.release(batch)
