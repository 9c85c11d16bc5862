"""Embeddings and probabilities: what open_clip and timm compute on the same pictures, in any batch, after any break."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from curate import aesthetic, classify, embed
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.images import decode
from shared.stages import Job
from shared.vision.table import read_vectors

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1},
}
PREPARE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
CLASSES = ["worst", "low", "normal", "good", "great", "best", "masterpiece"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A tiny model in the layout of open_clip."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": PREPARE}))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**CLIP).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A tiny classifier in the layout of timm."""
    folder = tmp_path_factory.mktemp("classifier")
    small = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4]}
    about = {
        "architecture": "swinv2_tiny_window8_256",
        "num_classes": 7,
        "model_args": small,
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
        | {"interpolation": "bicubic", "fixed_input_size": True, "label_names": CLASSES[::-1]},
    }
    (folder / "config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    model = timm.create_model("swinv2_tiny_window8_256", num_classes=7, **small)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state["head.fc.weight"] *= 100  # Lest all classes are as likely.
    save_file(state, folder / "model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture
def source(tmp_path, make) -> Path:
    """Pictures of several kinds; one is broken, one is gone."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(30):
        make.draw(number, (60 + 3 * number, 150 - 2 * number)).save(folder / f"{number:02}.png")
    make.draw(40, (400, 300)).save(folder / "large.jpg", quality=90)
    make.draw(41).convert("RGBA").save(folder / "alpha.png")
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:500])
    return folder


@pytest.fixture
def job(source, tmp_path, make, write_tables):
    """A stage's job on the pictures of the source."""

    def create(stage: Any, name: str, folder: str = "out", cores: int = 2, **settings: Any) -> Job[Any]:
        rows = []
        for path in sorted(source.iterdir()):
            image_id = hashlib.sha256(path.read_bytes()).hexdigest()
            rows.append(make.picture(image_id, location=path.name))
        rows.append(make.picture("f" * 64, location="gone.png"))
        tables = write_tables({"ingest": rows, "near": make.kept(*(row["image_id"] for row in rows))})
        out = tmp_path / name / folder
        out.mkdir(parents=True, exist_ok=True)
        return Job(
            source=str(source),
            settings=stage.settings(**settings),
            folder=out,
            tables=tables,
            deciders=("near",),
            engine=LocalEngine(cores),
        )

    return create


def read(job: Job[Any], column: str) -> dict[str, Any]:
    """Vectors or reasons, by picture."""
    dim = json.loads((job.folder / "about.json").read_text())["dim"]
    found = {}
    for row in pq.read_table(job.folder).to_pylist() if not (job.folder / "live.parquet").exists() else parts(job):
        vector = row[column]
        assert (vector is None) == (row["error"] is not None)
        found[row["image_id"]] = row["error"] or np.frombuffer(vector, "<f2")
        assert vector is None or len(found[row["image_id"]]) == dim
    return found


def parts(job: Job[Any]) -> list[dict[str, Any]]:
    return [row for part in sorted(job.folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]


def by_file(found: dict[str, Any], source: Path) -> dict[str, Any]:
    return {path.name: found[hashlib.sha256(path.read_bytes()).hexdigest()] for path in source.iterdir()}


def plain_open_clip(clip: str, source: Path) -> dict[str, np.ndarray]:
    """What everybody writes: one picture after the other."""
    model, _, prepare = open_clip.create_model_and_transforms(clip)
    model.eval()
    found = {}
    for path in source.iterdir():
        if path.name != "broken.png":
            image = decode(path.read_bytes()).image
            with torch.no_grad():
                found[path.name] = model.encode_image(prepare(image)[None], normalize=True)[0].numpy()
    return found


def test_embeddings_are_those_of_open_clip(clip, job, source):
    one = job(embed.STAGE, "embed", model=clip, pretrained=None, batch=7, shard_rows=16, decode="full")
    embed.STAGE.run(one)
    found = read(one, "embedding")
    assert found.pop("f" * 64) == "unreadable"
    found = by_file(found, source)
    assert found.pop("broken.png") == "undecodable"
    expected = plain_open_clip(clip, source)
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[name], atol=1e-3, err_msg=name)  # float16: 2^-11 of 1
        assert np.linalg.norm(vector.astype(float)) == pytest.approx(1, abs=1e-3)


def test_a_jpeg_decoded_at_a_reduced_scale_is_embedded_nearly_alike(clip, job, source):
    one = job(embed.STAGE, "embed", model=clip, pretrained=None)
    embed.STAGE.run(one)
    found = by_file(read(one, "embedding"), source)["large.jpg"]
    assert found.astype(float) @ plain_open_clip(clip, source)["large.jpg"] > 0.999


def test_batches_shards_and_workers_do_not_matter(clip, job):
    results = []
    for number, (batch, rows, cores) in enumerate([(1, 5, 1), (7, 100, 2), (64, 11, 2)]):
        one = job(embed.STAGE, "embed", str(number), cores, model=clip, pretrained=None, batch=batch, shard_rows=rows)
        embed.STAGE.run(one)
        results.append(read(one, "embedding"))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for image_id, vector in results[0].items():
            if isinstance(vector, str):
                assert other[image_id] == vector
            else:
                np.testing.assert_allclose(other[image_id].astype(float), vector.astype(float), atol=5e-4)


def test_an_interrupted_run_goes_on_to_the_same_bytes(clip, job, source, make):
    settings = {"model": clip, "pretrained": None, "batch": 4, "shard_rows": 8}
    whole = job(embed.STAGE, "embed", "whole", **settings)
    digest = embed.STAGE.run(whole)
    broken = job(embed.STAGE, "embed", "broken", **settings)
    embed.STAGE.run(broken)
    for part in sorted(broken.folder.glob("part-*"))[1::2]:
        part.unlink()
    assert embed.STAGE.run(broken) == digest
    for part in sorted(whole.folder.glob("part-*")):
        assert (broken.folder / part.name).read_bytes() == part.read_bytes()
    # New pictures are the only ones embedded.
    times = {part: part.stat().st_mtime_ns for part in whole.folder.glob("part-*")}
    make.draw(99).save(source / "new.png")
    again = job(embed.STAGE, "embed", "whole", **settings)
    assert embed.STAGE.run(again) != digest
    assert {part: part.stat().st_mtime_ns for part in times} == times
    assert len(list(whole.folder.glob("part-*"))) == len(times) + 1


def test_no_model_is_loaded_where_nothing_is_new(clip, job, tmp_path):
    folder = Path(shutil.copytree(clip.removeprefix("local-dir:"), tmp_path / "moved"))
    settings = {"model": f"local-dir:{folder}", "pretrained": None}
    digest = embed.STAGE.run(job(embed.STAGE, "embed", **settings))
    shutil.rmtree(folder)
    assert embed.STAGE.run(job(embed.STAGE, "embed", **settings)) == digest


def test_other_weights_under_the_same_name_are_refused(clip, job, source, tmp_path, make):
    folder = Path(shutil.copytree(clip.removeprefix("local-dir:"), tmp_path / "moved"))
    settings = {"model": f"local-dir:{folder}", "pretrained": None}
    embed.STAGE.run(job(embed.STAGE, "embed", **settings))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"] *= 2
    save_file(weights, folder / "open_clip_model.safetensors")
    make.draw(99).save(source / "new.png")
    with pytest.raises(UserError, match=r"was made with weights = .* delete the folder"):
        embed.STAGE.run(job(embed.STAGE, "embed", **settings))


def test_numbers_that_are_not_finite_are_a_reason(clip, job, tmp_path):
    folder = Path(shutil.copytree(clip.removeprefix("local-dir:"), tmp_path / "moved"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"][:] = float("nan")
    save_file(weights, folder / "open_clip_model.safetensors")
    one = job(embed.STAGE, "embed", model=f"local-dir:{folder}", pretrained=None)
    embed.STAGE.run(one)
    assert set(map(str, read(one, "embedding").values())) == {"not_finite", "undecodable", "unreadable"}


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-Z-99", "openai", "not found"),
        ("ViT-S-32", "nobody", "not a known tag or valid file path"),
        ("ViT-S-32", None, "hf-hub:NAME or local-dir:FOLDER"),
        ("local-dir:/nowhere", None, "not found"),
    ],
)
def test_what_is_no_model(model, pretrained, message, job):
    with pytest.raises(UserError, match=message):
        embed.STAGE.run(job(embed.STAGE, "embed", model=model, pretrained=pretrained))


def test_the_whole_checkpoint_of_a_stranger_is_not_executed(job, tmp_path):
    torch.save(torch.nn.Linear(3, 3), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"weights_only|Weights only"):
        embed.STAGE.run(job(embed.STAGE, "embed", model="ViT-S-32", pretrained=str(tmp_path / "model.pt")))


def test_probabilities_are_those_of_timm(classifier, job, source):
    one = job(classify.STAGE, "classify", model=classifier, batch=5)
    classify.STAGE.run(one)
    found = read(one, "probabilities")
    assert found.pop("f" * 64) == "unreadable"
    found = by_file(found, source)
    model = timm.create_model(classifier, pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for path in source.glob("[0-9]*.png"):
        with torch.no_grad():
            expected = model(prepare(Image.open(path).convert("RGB"))[None]).softmax(-1)[0].numpy()
        np.testing.assert_allclose(found[path.name], expected, atol=1e-3)


def test_scores_and_what_they_were_made_with(clip, classifier, job, source, tmp_path):
    first, second = (
        job(embed.STAGE, "embed", model=clip, pretrained=None),
        job(classify.STAGE, "classify", model=classifier),
    )
    embed.STAGE.run(first)
    classify.STAGE.run(second)
    torch.manual_seed(1)
    head = torch.nn.Linear(24, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    np.savez(tmp_path / "samples.npz", np.array([[0.0, 2.0, 4.0, 6.0], [0.0, 0.1, 0.6, 1.0]]))
    one = job(
        aesthetic.STAGE,
        "aesthetic",
        heads={"linear": tmp_path / "head.pth"},
        classes={"anime": tmp_path / "samples.npz"},
    )
    tables = dict(one.tables) | {"embed": first.folder, "classify": second.folder}
    one = Job(**(vars(one) | {"tables": tables}))
    aesthetic.STAGE.run(one)
    table = pq.read_table(one.folder)
    scores = dict(zip(table["image_id"].to_pylist(), table["scores"].to_pylist(), strict=True))
    embeddings, classes = read(first, "embedding"), read(second, "probabilities")
    assert scores.keys() == embeddings.keys() == classes.keys()
    for image_id, score in scores.items():
        if isinstance(embeddings[image_id], str):
            assert score == {"linear": None, "anime": None}
            continue
        with torch.no_grad():
            assert score["linear"] == pytest.approx(head(torch.tensor(embeddings[image_id]).float()).item(), abs=1e-5)
        mean = classes[image_id].astype(float) @ np.arange(6, -1, -1)  # The classifier's first class is the best.
        assert score["anime"] == pytest.approx(np.interp(mean, [0, 2, 4, 6], [0, 0.1, 0.6, 1]), abs=1e-5)
    about = table.schema.field("scores").type.field("linear").metadata
    assert about[b"model"] == clip.encode()
    assert about[b"head"] == b"head.pth"
    assert {b"weights", b"head_weights", b"preprocessing", b"precision"} <= about.keys()
    pieces = list(read_vectors(one, "embed", "embedding"))
    assert sum(len(ids) for ids, _ in pieces) == sum(not isinstance(vector, str) for vector in embeddings.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to compute"),
        ({"heads": {"one": "head.pth"}}, "needs the stage curate.embed"),
        ({"classes": {"one": None}}, "needs the stage curate.classify"),
    ],
)
def test_settings_that_cannot_work(settings, message, job):
    with pytest.raises(UserError, match=message):
        aesthetic.STAGE.run(job(aesthetic.STAGE, "aesthetic", **settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_decoding_on_a_gpu_needs_one(clip, job):
    with pytest.raises(UserError, match=r"decode = gpu: .* use reduced or full"):
        embed.STAGE.run(job(embed.STAGE, "embed", model=clip, pretrained=None, decode="gpu"))
