"""`train sample`: files that say how they were made, and that can be made again from what they say."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shared.errors import UserError
from train import prompts
from train.cache.settings import CacheSettings
from train.cli import app
from train.draw import parameters
from train.model.weights import load_transformer, save_transformer
from train.settings import DrawSettings

QUICK = ["--steps", "2", "--size", "32x48"]


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    """A checkpoint of a run, of other weights than the model's."""
    model = load_transformer(tiny_model / "transformer")
    folder = tmp_path / "checkpoint"
    other = {name: tensor * 1.1 for name, tensor in model.state_dict().items()}
    save_transformer(other, model.config, folder / "transformer_ema")
    (folder / "state.json").write_text(json.dumps({"step": 7}))
    return folder


def sample(*words: object) -> str:
    done = CliRunner().invoke(app, ["sample", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def facts_of(path: Path) -> tuple[str, dict[str, str]]:
    """What stands before the last line of a picture's text, and the last line, read as the web UI reads it."""
    text, line = opened(path).info["parameters"].rsplit("\n", 1)
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    return text, {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def test_a_picture_can_be_made_again_from_what_it_says(
    checkpoint: Path, tiny_model: Path, cached: Path, tmp_path: Path
):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat, 日本語\n\n  \nA drawing of number 2.\n", encoding="utf-8")
    common = ["--model", tiny_model, "--checkpoint", checkpoint, "--work", cached, "--out", tmp_path / "out"]
    options = ["--size", "64x32", "--count", "2", "--seed", "5", "--guidance-until", "1", "--negative", "bad: a, b"]
    printed = sample("1girl", "--prompts", file, *common, *QUICK, *options, "--grid")
    out = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert out == [*(f"{number:05}.png" for number in range(12)), "grid-00000.png"]
    assert "grid-00000.png" in printed
    made = tmp_path / "out" / "00007.png"
    text, facts = facts_of(made)
    assert text == "a cat, 日本語\nNegative prompt: bad: a, b"
    assert facts == {
        "Steps": "2",
        "Sampler": "Euler",
        "CFG scale": "4.0",
        "Seed": "8",
        "Size": "64x32",
        "Shift": "6.0",
        "Guidance until": "1.0",
        "Model": str(checkpoint),
        "Model step": "7",
        "Model weights": "averaged",
        "Prompt prefix": CacheSettings().prompt_prefix,
    }
    assert opened(made).size == (64, 32)
    sample("a cat, 日本語", *common, "--steps", 2, "--size", "64x32", "--seed", 8, *options[6:])
    again = tmp_path / "out" / "00012.png"
    assert facts_of(again) == facts_of(made)
    difference = np.asarray(opened(again)).astype(int) - np.asarray(opened(made))
    assert np.abs(difference).max() <= 1, "batches round differently"
    sample("a cat, 日本語", *common, "--steps", 2, "--size", "64x32", "--seed", 8, *options[6:8])
    plain = np.asarray(opened(tmp_path / "out" / "00013.png")).astype(int)
    assert np.abs(plain - np.asarray(opened(made))).max() > 1, "the negative prompt has an effect"


def test_nothing_but_transformer_and_autoencoder_is_needed_where_embeddings_are_cached(
    tiny_model: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompts, "TextEncoder", None)
    for part in ("transformer", "vae"):
        shutil.copytree(tiny_model / part, tmp_path / "model" / part)
    common = ["--model", tmp_path / "model", "--work", cached, "--out", tmp_path / "out", *QUICK]
    sample("A drawing of number 2.", "", *common)
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(UserError, match="no text_encoder/ in it"):
        sample("a new one", *common)


def test_what_cannot_be_drawn_is_refused(tiny_model: Path, cached: Path, tmp_path: Path):
    common = ["--model", tiny_model, "--out", tmp_path / "out"]
    with pytest.raises(UserError, match="give prompts, or a file"):
        sample(*common)
    with pytest.raises(UserError, match="take 96x48 or 112x48"):
        sample("1girl", *common, "--size", "100x48")
    config = json.loads((tiny_model / "transformer" / "config.json").read_text())
    wide = tmp_path / "wide"
    shutil.copytree(tiny_model, wide)
    (wide / "transformer" / "config.json").write_text(json.dumps({**config, "cap_feat_dim": 256}))
    with pytest.raises(UserError, match=r"have the width 128, the transformer of .* takes 256"):
        sample("1girl", "--model", wide, "--work", cached, "--out", tmp_path / "out", *QUICK)
    assert not (tmp_path / "out").exists()


def test_parameters_are_those_of_the_web_ui():
    found = parameters("1girl", "", DrawSettings(steps=20, seed=3), 4, "832x1216", {"Model": 'a, "b"', "Note": " x "})
    assert found == (
        "1girl\nSteps: 20, Sampler: Euler, CFG scale: 4.0, Seed: 4, Size: 832x1216, Shift: 6.0, Guidance until: 0.25, "
        'Model: "a, \\"b\\"", Note: " x "'
    )


def test_a_file_of_prompts_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sample", "--prompts", str(tmp_path / "none.txt")])
    assert done.exit_code == 2
    assert "does not exist" in done.output
