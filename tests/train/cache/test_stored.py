"""A cache in int8: half the bytes, an error that is measured and told, and as strict as one in bfloat16."""

import random
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from shared.corpus import Corpus
from shared.errors import UserError
from shared.tensors import CorruptTensor
from tests.train.cache.test_cache import files, flip
from tests.train.cache.test_estimate import measured as with_sizes
from tests.train.conftest import SETTINGS
from tests.train.test_run import SETTINGS as TRAIN
from train.cache import latents, text
from train.cache.autoencoder import ImageEncoder
from train.cache.cli import app
from train.cache.error import told
from train.cache.estimate import estimate
from train.cache.finalize import finalize
from train.cache.inspect import inspect
from train.cache.int8 import BOUND
from train.cache.manifest import CacheLayout, read_about
from train.cache.pictures import prepare
from train.cache.reader import CacheReader
from train.cache.reencode import reencoded
from train.cache.run import Summary, cache, expected, report
from train.cache.verify import verify
from train.records import read
from train.run import start

INT8 = SETTINGS.model_copy(update={"latent_dtype": "int8", "text_dtype": "int8", "areas": (32, 64)})
measured = with_sizes


def run(work: Path, model: Path, workers: int = 1) -> Summary:
    return cache(work, Corpus(str(work.parent / "pictures")), model, INT8, workers=workers)


@pytest.fixture
def small(cached: Path, tiny_model: Path) -> Path:
    """A cache in int8, beside one in bfloat16 of which the manifest knows nothing any more."""
    run(cached, tiny_model)
    return cached


def places(work: Path) -> list[dict[str, object]]:
    manifest = CacheLayout(work).manifest
    images = pq.read_table(manifest / "latents.parquet").to_pylist()
    texts = pq.read_table(manifest / "text.parquet").to_pylist()
    return images + [row | {"image_id": images[row["image"]]["image_id"]} for row in texts]


def test_tensors_are_those_of_bfloat16_but_for_the_error(cached: Path, tiny_model: Path):
    before, exact = files(cached), CacheReader(cached)
    tensors = {
        (index, variant): exact.latent(index) if variant == "latent" else exact.text(index, variant)
        for index in range(exact.images)
        for variant in ("latent", None, *exact.variants(index))
    }
    run(cached, tiny_model)
    assert {name for name in before if "part-" in name} < files(cached).keys()
    found = CacheReader(cached)
    for (index, variant), tensor in tensors.items():
        other = found.latent(index) if variant == "latent" else found.text(index, variant)
        assert (other.dtype, other.shape) == (torch.bfloat16, tensor.shape)
        error = (other.float() - tensor.float()).norm() / tensor.float().norm()
        assert error <= BOUND + 2**-7
        assert (error == 0) == (variant is None), "the empty caption is stored in bfloat16"


def test_errors_are_those_of_what_is_given_back(small: Path, tiny_model: Path):
    encoder, pictures = ImageEncoder(tiny_model, torch.device("cpu")), Corpus(str(small.parent / "pictures"))
    locations = {row["image_id"]: row["locations"] for row in pq.read_table(small / "curated").to_pylist()}
    about, found = read_about(small), []
    for area in INT8.areas:
        reader = CacheReader(small, area=area)
        (part,) = {place["file"].rpartition("/")[0] for place in places(small) if place.get("area") == area}
        written = dict(
            duckdb.sql(f"SELECT image_id, error FROM '{CacheLayout(small).root}/{part}/part-*.parquet'").fetchall()
        )
        for index in range(reader.images):
            image_id = reader.image_id(index)
            source = prepare(pictures, image_id, locations[image_id], area, 16).pixels
            given = encoder.encode([source])[0]
            error = float((reader.latent(index).float() - given).norm() / given.norm())
            assert written[image_id] == pytest.approx(error, abs=2e-5)
            found.append(error)
    assert about["error"]["latents"] == {
        "mean": pytest.approx(np.mean(found), abs=2e-5),
        "max": pytest.approx(np.max(found), abs=2e-5),
    }
    assert 0.002 < about["error"]["text"]["mean"] < about["error"]["text"]["max"] < BOUND + 2**-7
    assert about["latents"]["dtype"] == about["text"]["dtype"] == "int8"
    lines = told(about["error"])
    assert lines[0] == (
        f"latents stored as int8: relative error {np.mean(found):.4f} on average, at most {np.max(found):.4f}"
    )
    assert lines[1].startswith("text stored as int8: relative error 0.00")


def test_bytes(measured: Path, tiny_model: Path):
    before = estimate(measured, str(tiny_model), INT8, 50, 800)
    run(measured, tiny_model)
    length = sum(place["length"] for place in places(measured))
    assert sum(line.bytes for line in before) == length
    assert all(line.cached == line.items for line in estimate(measured, str(tiny_model), INT8, 50, 800))
    double = sum(line.bytes for line in estimate(measured, str(tiny_model), SETTINGS, 50, 800) if "64" in line.kind)
    assert sum(line.bytes for line in before if "64" in line.kind) == double * 17 / 32


def test_flipped_bits_are_found_and_named(small: Path):
    assert verify(small) == []
    rng, layout = random.Random(0), CacheLayout(small)
    for place in rng.sample(places(small), 12):
        path = layout.root / place["file"]
        offset = place["offset"] + rng.randrange(place["length"])
        bit = 1 << rng.randrange(8)
        flip(path, offset, bit)
        (problem,) = verify(small)
        assert problem.startswith(f"{path} row {place['row']}, image {place['image_id']}: ")
        reader = CacheReader(small, area=place.get("area"))
        index = reader.image_ids.to_pylist().index(place["image_id"])
        with pytest.raises(CorruptTensor, match="CRC"):
            reader.text(index, place["variant"]) if "variant" in place else reader.latent(index)
        flip(path, offset, bit)


@pytest.mark.parametrize("encoder", [latents.ImageEncoder, text.TextEncoder])
def test_numbers_that_are_not_finite(curated: Path, tiny_model: Path, encoder: type, monkeypatch: pytest.MonkeyPatch):
    compute = encoder._compute

    def one_is_not(self, inputs):
        found = compute(self, inputs)
        found.view(-1)[-1] = float("inf")
        return found

    monkeypatch.setattr(encoder, "_compute", one_is_not)
    with pytest.raises(RuntimeError, match=r"image [0-9a-f]{64}: .* not finite"):
        run(curated, tiny_model)


def test_the_same_bytes_for_any_workers_and_from_the_shards_alone(small: Path, curated: Path, tiny_model: Path):
    run(curated, tiny_model, workers=2)
    found = files(curated)
    assert found.items() <= files(small).items()
    assert finalize(curated, INT8)[1] == []
    assert files(curated) == found


def test_encoded_again(small: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = Corpus(str(small.parent / "pictures"))
    assert reencoded(small, pictures, tiny_model, 3) == []
    monkeypatch.setattr("train.cache.reencode.BOUND", 0.0)
    assert any("more than 0.005" in problem for problem in reencoded(small, pictures, tiny_model, 3))


def test_the_form_is_part_of_what_is_expected(small: Path, tiny_model: Path):
    CacheReader(small, expected(tiny_model, INT8))
    with pytest.raises(UserError) as raised:
        CacheReader(small, expected(tiny_model, INT8.model_copy(update={"text_dtype": "bfloat16"})))
    assert str(raised.value).splitlines()[1:] == ['  text.dtype: expected "bfloat16", found "int8"']


def test_duckdb_and_pyarrow_give_what_the_reader_gives(small: Path):
    reader = CacheReader(small)
    parts = [CacheLayout(small).root / place["file"] for place in places(small) if place.get("area") == 64]
    by_pyarrow = {
        row["image_id"]: row["latent"]
        for part in parts
        for row in pq.read_table(part, page_checksum_verification=True).to_pylist()
    }
    by_duckdb = dict(duckdb.sql(f"SELECT image_id, latent FROM '{parts[0].parent}/part-*.parquet'").fetchall())
    assert by_pyarrow == by_duckdb
    assert len(by_pyarrow) == reader.images
    for index in range(reader.images):
        latent = reader.latent(index)
        data, blocks = by_pyarrow[reader.image_id(index)], latent.numel() // 32
        scales = np.frombuffer(data[: 2 * blocks], np.uint16).astype(np.uint32) << 16  # bfloat16 is half a float32.
        values = np.frombuffer(data[2 * blocks :], np.int8).reshape(blocks, 32) * scales.view(np.float32)[:, None]
        assert torch.equal(torch.from_numpy(values).bfloat16().view(latent.shape), latent)


def test_the_error_is_shown(small: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]):
    result = run(small, tiny_model)
    report(result)
    (latents_line, text_line) = told(read_about(small)["error"])
    shown = capfd.readouterr().out
    assert f"  {latents_line}\n  {text_line}\n" in shown
    assert CliRunner().invoke(app, ["verify", "--work", str(small)]).output.splitlines()[1:] == [
        latents_line,
        text_line,
    ]
    assert inspect(small, Corpus(str(small.parent / "pictures")), tiny_model, "0").error == result.error


def test_training(small: Path, tiny_model: Path):
    losses = []
    for name, settings in (("small", INT8), ("exact", SETTINGS.model_copy(update={"areas": (32, 64)}))):
        cache(small, Corpus(str(small.parent / "pictures")), tiny_model, settings, workers=1)
        start(small, str(tiny_model), name, TRAIN, settings)
        losses.append([record["loss"] for record in read(small / "runs" / name / "metrics.jsonl")])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
