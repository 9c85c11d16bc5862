"""The tagger, against the family's own way: Pillow, timm's transform, one picture at a time."""

import csv
import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from safetensors.torch import save_file

from caption import tagger
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import DECISIONS, Job

ROWS = [
    ("general", 9),
    ("sensitive", 9),
    ("explicit", 9),
    ("1girl", 0),
    ("long_hair", 0),
    (">_<", 0),
    ("smile", 0),
    ("hatsune_miku", 4),
    ("fate_(series)", 3),
]
NUMBERS = {9: "rating", 0: "general", 4: "character", 3: "copyright"}


def write_tags(folder: Path) -> None:
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows((number, name, category, 100) for number, (name, category) in enumerate(ROWS))


def write_tagger(folder: Path) -> None:
    """A tiny model in the family's layout."""
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    about = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(ROWS),
        "model_args": small,
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
        | {"interpolation": "bicubic", "fixed_input_size": True},
    }
    (folder / "config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(ROWS), **small)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state["head.weight"] *= 100  # Lest all probabilities are a half.
    save_file(state, folder / "model.safetensors")
    write_tags(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model."""
    folder = tmp_path_factory.mktemp("wd-tiny")
    write_tagger(folder)
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """Noise of many shapes, and a broken file."""
    folder = tmp_path / "source"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        shape = (*random.integers(20, 200, 2).tolist(), 4 if number % 3 == 0 else 3)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def job(source, tmp_path):
    def create(model: object, name: str = "out", **settings: Any) -> Job[Any]:
        ids = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.name) for path in sorted(source.iterdir())]
        for table in "ingest", "near", name:
            (tmp_path / table).mkdir(exist_ok=True)
        pictures = [{"image_id": image_id, "location": place, "error": None} for image_id, place in ids]
        schema = pa.schema([(name, pa.string()) for name in ("image_id", "location", "error")])
        pq.write_table(pa.Table.from_pylist(pictures, schema), tmp_path / "ingest/part-0.parquet")
        decided = [{"image_id": image_id, "keep": True} for image_id, _ in ids]
        pq.write_table(pa.Table.from_pylist(decided, DECISIONS), tmp_path / "near/part-0.parquet")
        return Job(
            source=str(source),
            settings=tagger.STAGE.settings(model=str(model), **settings),
            folder=tmp_path / name,
            tables={"ingest": tmp_path / "ingest", "near": tmp_path / "near"},
            deciders=("near",),
            engine=LocalEngine(2),
        )

    return create


def rows(job: Job[Any], source: Path) -> dict[str, dict[str, Any]]:
    found = {row["image_id"]: row for part in job.folder.glob("part-*") for row in pq.read_table(part).to_pylist()}
    return {path.name: found[hashlib.sha256(path.read_bytes()).hexdigest()] for path in source.iterdir()}


def reference(folder: Path, path: Path) -> np.ndarray:
    """As the family's own script: white behind, a white square around, bicubic, BGR."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg, model=model))
    image = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255))
    canvas.alpha_composite(image)
    image = canvas.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    with torch.no_grad():
        return model(transform(square)[None][:, [2, 1, 0]]).sigmoid()[0].numpy()


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_tags_are_those_of_the_reference(folder, job, source, batch):
    thresholds = {"general": 0.3, "character": 0.6, "copyright": 0.5}
    one = job(folder, batch=batch, thresholds=thresholds)
    tagger.STAGE.run(one)
    found = rows(one, source)
    assert found.pop("broken.png") | {"image_id": "", "detail": ""} == {
        "image_id": "", "tags": None, "rating": None, "rating_confidence": None, "error": "not_an_image", "detail": "",
    }  # fmt: skip
    given = 0
    for name, row in found.items():
        expected = reference(folder, source / name)
        tags = {
            tag: (NUMBERS[category], probability)
            for (tag, category), probability in zip(ROWS, expected, strict=True)
            if category != 9 and probability >= thresholds[NUMBERS[category]]
        }
        assert {tag["name"]: tag["category"] for tag in row["tags"]} == {tag: one for tag, (one, _) in tags.items()}
        confidences = [tag["confidence"] for tag in row["tags"]]
        assert confidences == sorted(confidences, reverse=True)
        for tag in row["tags"]:
            assert tag["confidence"] == pytest.approx(tags[tag["name"]][1], abs=2e-3)
            assert tag["origin"] == "tagger"
        assert row["rating"] == ROWS[int(expected[:3].argmax())][0]
        assert row["rating_confidence"] == pytest.approx(expected[:3].max(), abs=2e-3)
        given += len(tags)
    assert 10 < given < 12 * 6


def test_published_thresholds_are_found_by_name(folder, tmp_path):
    named = tmp_path / "wd-vit-tagger-v3"
    named.symlink_to(folder)
    model, _ = tagger.load_tagger(tagger.TaggerSettings(model=str(named), thresholds={"character": 0.85}))
    assert model.about["thresholds"] == {"general": 0.2614, "character": 0.85, "copyright": 0.2614}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, r"no threshold is known .* tagger\.thresholds\.character"),
        (lambda folder: (folder / "selected_tags.csv").unlink(), "there is no selected_tags.csv"),
        (lambda folder: (folder / "selected_tags.csv").write_text("name,category\na,7\n"), "must have the columns"),
        (lambda folder: (folder / "selected_tags.csv").write_text("name,category\na,0\n"), "gives 9 numbers"),
    ],
)
def test_what_is_no_tagger(folder, job, tmp_path, change, message):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    settings = {"thresholds": {"general": 0.1}} if "numbers" in message else {}
    with pytest.raises(UserError, match=message):
        tagger.STAGE.run(job(copy, **settings))


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 12)), elements=st.floats(0, 1, width=32)))
def test_the_gap_is_where_it_is_by_definition(found):
    for row, limit in zip(found, tagger.gaps(found), strict=True):
        ordered = sorted(row.tolist(), reverse=True)
        widths = [before - after for before, after in pairwise(ordered)]
        at = widths.index(max(widths))
        assert limit == pytest.approx((ordered[at] + ordered[at + 1]) / 2, abs=1e-6)


def test_mcut_needs_no_threshold(folder, job, source):
    one = job(folder, mcut=True)
    tagger.STAGE.run(one)
    expected = reference(folder, source / "01.png")
    general = {tag: p for (tag, category), p in zip(ROWS, expected, strict=True) if category == 0}
    limit = tagger.gaps(np.array([list(general.values())], np.float32))[0]
    found = {tag["name"] for tag in rows(one, source)["01.png"]["tags"] if tag["category"] == "general"}
    assert found == {tag for tag, probability in general.items() if probability >= limit}


def test_onnx_gets_levels_in_its_own_order(job, source, tmp_path):
    """A file that gives the mean level of each channel, as 0 to 1: what it is fed is what comes out."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    folder = tmp_path / "wd-onnx"
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [1 / 255])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    (folder / "selected_tags.csv").write_text("name,category\nblue,0\ngreen,0\nred,0\n")
    Image.new("RGB", (50, 40), (255, 0, 51)).save(source / "colour.png")
    one = job(folder, runtime="onnx", thresholds={"general": 0.0})
    tagger.STAGE.run(one)
    found = {tag["name"]: tag["confidence"] for tag in rows(one, source)["colour.png"]["tags"]}
    white = 1 - 40 / 50  # Of the square.
    assert found["red"] == pytest.approx(1, abs=0.01)
    assert found["green"] == pytest.approx(white, abs=0.02)
    assert found["blue"] == pytest.approx(white + (1 - white) * 0.2, abs=0.02)
