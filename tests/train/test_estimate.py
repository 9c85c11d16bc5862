"""What a run takes, against published numbers, arithmetic by hand, and what a run records."""

from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from shared.pipelines import SHIPPED, load
from train.cache.settings import CacheSettings
from train.cli import app
from train.estimate import RELEASED, STEPS, assumed, checkpoint_bytes, counts, lines_of
from train.peak import BF16_PEAK
from train.records import read
from train.run import start
from train.settings import LoraSettings, PhaseSettings, SampleSettings, TrainSettings

WEIGHTS = 2_609_769_152
"""Of the released model, published."""


def test_the_run_of_the_paper():
    pipeline = load(SHIPPED, "illustrious-lu-v0.03")
    settings, cache = cast(TrainSettings, pipeline.sections["train"]), cast(CacheSettings, pipeline.sections["cache"])
    (line,) = assumed(settings, cache, RELEASED)
    assert (line.steps, line.samples) == (26_500, 20_352_000)
    assert line.tokens == 4096 + 100 + 16 * 16 + 100
    # 6 operations for each weight that a token meets, 12 x width for each pair of tokens in each of 28 blocks. The
    # weights of modulation (29 x 1024 x 4 x 2304) are met by samples, those that refine text by text alone.
    by_tokens = WEIGHTS - 29 * 1024 * 4 * 2304 - 2 * 84_934_656
    by_hand = 6 * by_tokens * (4196 + 356) + 12 * 2304 * 28 * (4196**2 + 356**2)
    assert line.flops / line.samples == pytest.approx(by_hand, rel=0.02)
    # Published beside the design of this project: 70 TFLOP for a sample of 1024 px.
    (without,) = assumed(settings.model_copy(update={"pooled_loss": 0}), cache, RELEASED)
    assert without.flops / without.samples == pytest.approx(70e12, rel=0.03)
    assert line.hours(0.45 * BF16_PEAK["H100"]) == pytest.approx(line.flops / 0.45 / 989e12 / 3600)


def test_a_cache_gives_what_a_run_records(cached: Path, tiny_model: Path):
    settings = TrainSettings(
        steps=STEPS, batch=5, token_budget=400, samples=SampleSettings(every=9, steps=1, prompts=("1girl",))
    )
    (line,), config = lines_of(cached, settings, CacheSettings(), str(tiny_model))
    start(cached, str(tiny_model), "run", settings)
    records = read(cached / "runs" / "run" / "metrics.jsonl")
    assert line.flops == pytest.approx(sum(record["flops"] for record in records))
    assert (line.pictures, line.samples) == (11, 20)
    assert config.cap_feat_dim == 96 or config != RELEASED


def test_phases_have_a_line_each():
    phases = (PhaseSettings(areas=(512,)), PhaseSettings(first=70, areas=(512, 1024)), PhaseSettings(first=100))
    settings = TrainSettings(steps=100, batch=10, phases=phases, pooled_loss=0)
    small, both = assumed(settings, CacheSettings(areas=(1024,)), RELEASED)
    assert [(line.first, line.steps, line.samples) for line in (small, both)] == [(0, 70, 700), (70, 30, 300)]
    assert small.tokens == 1024 + 100
    assert both.tokens == (1024 + 4096) / 2 + 100


def test_adapters_are_few():
    lora = TrainSettings(lora=LoraSettings(rank=16))
    found = counts(lora, RELEASED)
    assert found.all - found.learning == WEIGHTS
    # Rank x (rows + columns) of the seven matrices of each of 30 blocks.
    attention, feed_forward = 2304 * 4 + 2304 + 2 * 768 + 2304, 3 * (2304 + 9216)
    assert found.learning == 30 * 16 * (attention + feed_forward)
    assert checkpoint_bytes(lora, found) == 16 * found.learning
    assert checkpoint_bytes(TrainSettings(), counts(TrainSettings(), RELEASED)) == 16 * WEIGHTS


def test_the_command_needs_no_work_directory(tmp_path: Path):
    done = CliRunner().invoke(app, ["estimate", "--pipeline", "illustrious-lu-v0.03", "--work", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "4.8 days on 8 H100" in done.output
    assert "a checkpoint: 41.8 GB" in done.output
