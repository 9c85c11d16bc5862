"""The command as a user meets it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from tests.train.cache.test_cache import flip, latent_parts
from tests.train.conftest import SIZES
from train.cache.cli import app, main
from train.cache.manifest import read_about

Run = Callable[..., tuple[int, str, str]]

OPTIONS = {
    "cache-latents": ["--work", "--model", "--source", "--set", "--workers"],
    "estimate": ["--work", "--model", "--set", "--pictures-per-second", "--captions-per-second"],
    "finalize": ["--work", "--model", "--set"],
    "verify": ["--work", "--reencode", "--model", "--source"],
    "inspect": ["image", "--work", "--model", "--source", "--area", "--out"],
}


def test_the_surface_is_known():
    """Options are promises: think before this list grows."""
    command = typer.main.get_command(app)
    found = {"cache-latents": command, **command.commands}
    assert {name: [option.opts[0] for option in part.params] for name, part in found.items()} == OPTIONS


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def start(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["cache-latents", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capfd.readouterr())

    return start


def test_encode_verify_finalize(run: Run, curated: Path, tiny_model: Path):
    code, output, _ = run("--work", curated, "--model", tiny_model)
    assert code == 0
    assert f"cached {len(SIZES)} pictures and 10 captions" in output
    assert "7 captions tags" in output
    assert "3 captions text" in output
    assert run("verify", "--work", curated)[:2] == (0, "every tensor is what was written\n")
    identity = read_about(curated)["identity"]
    assert run("finalize", "--work", curated)[:2] == (0, f"identity {identity[:12]}\n")
    assert read_about(curated)["identity"] == identity


def test_estimate_and_inspect(run: Run, cached: Path, tiny_model: Path, tmp_path: Path):
    part = next((cached / "curated").iterdir())
    rows = pq.read_table(part)
    for column in ("width", "height"):
        rows = rows.append_column(column, pa.array([64] * len(rows), pa.int32()))
    pq.write_table(rows, part)
    code, output, _ = run("estimate", "--work", cached, "--model", tiny_model)
    assert (code, "latents 64 px" in output, "captions tags" in output) == (0, True, True)
    image_id = rows["image_id"][0].as_py()
    out = tmp_path / "out.png"
    assert run("inspect", image_id[:16], "--work", cached, "--model", tiny_model, "--out", out)[:2] == (0, f"{out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert run("verify", "--work", cached, "--model", tiny_model, "--reencode", "2")[0] == 0


def test_moved_pictures_and_other_settings(run: Run, curated: Path, tiny_model: Path):
    moved = (curated.parent / "pictures").rename(curated.parent / "moved")
    code, _, error = run("--work", curated, "--model", tiny_model)
    assert (code, "say where they are with --source" in error) == (2, True)
    settings = ("--set", "cache.areas=[48]", "--set", "cache.max_tokens=40")
    assert run("--work", curated, "--model", tiny_model, "--source", moved, *settings)[0] == 0
    about = read_about(curated)
    assert (about["latents"]["areas"], about["text"]["max_tokens"]) == ([48], 40)


def test_corruption_is_told_and_repaired(run: Run, cached: Path, tiny_model: Path):
    path = latent_parts(cached)[2]
    whole = path.read_bytes()
    flip(path, 600)
    code, _, error = run("verify", "--work", cached)
    assert code == 1
    assert str(path) in error
    assert "1 problems" in error
    path.unlink()  # As the message says.
    assert run("--work", cached, "--model", tiny_model)[0] == 0
    assert path.read_bytes() == whole
    assert run("verify", "--work", cached)[0] == 0


def test_errors_have_a_way_out(run: Run, curated: Path, tiny_model: Path, tmp_path: Path):
    def error(*arguments: object) -> str:
        code, _, text = run(*arguments)
        assert code == 2
        assert text.startswith("error: ")
        assert "Traceback" not in text
        return text

    assert "run `curate run" in error("--work", tmp_path / "nothing")
    assert "run `cache-latents" in error("verify", "--work", curated)
    assert "run `cache-latents" in error("finalize", "--work", curated)
    assert "run `cache-latents" in error("inspect", "0", "--work", curated, "--model", tiny_model)
    assert "no vae/ in it" in error("--work", curated, "--model", model_without_vae(tmp_path))
    assert "cache.area " in error("--work", curated, "--set", "cache.area=5")
    assert "cache.areas" in error("--work", curated, "--set", "cache.areas=5")
    document = yaml.safe_load((curated / "pipeline.yaml").read_text())
    del document["source"]
    (curated / "pipeline.yaml").write_text(json.dumps(document))
    assert "say it with --source" in error("--work", curated)


def model_without_vae(folder: Path) -> Path:
    (folder / "model" / "transformer").mkdir(parents=True)
    return folder / "model"


def test_a_variant_that_is_no_folder_name(run: Run, curated: Path, tiny_model: Path):
    rows = pq.read_table(curated / "curated").to_pylist()
    rows[1]["captions"] = [{"variant": "../tags", "text": "smile"}]
    pq.write_table(pa.Table.from_pylist(rows), curated / "curated" / "part-00000.parquet")
    code, _, error = run("--work", curated, "--model", tiny_model)
    assert (code, "'../tags'" in error) == (2, True)
    assert not (curated / "cache").exists()
