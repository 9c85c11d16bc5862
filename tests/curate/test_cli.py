"""The command as a user meets it."""

import sys

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from curate.cli import app, main

OPTIONS = {
    "run": ["source", "--pipeline", "--work", "--set", "--pipelines", "--engine", "--workers", "--dry-run"],
    "filter": ["--work", "--set", "--dry-run"],
    "status": ["--work"],
    "tags": ["--work", "--with", "--rare"],
}


def test_the_surface_is_known():
    """Options are promises: think before this list grows."""
    commands = typer.main.get_command(app).commands
    found = {name: [parameter.opts[0] for parameter in command.params] for name, command in commands.items()}
    assert found == OPTIONS


def invoke(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return (stop.value.code or 0, *capfd.readouterr())


@pytest.fixture
def run(monkeypatch, capfd, pipelines, tmp_path):
    def start(*arguments):
        options = ("--pipelines", pipelines, "--pipeline", "test", "--work", tmp_path / "work", "--workers", 1)
        return invoke(monkeypatch, capfd, "run", *arguments, *options)

    return start


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("near.distance=9", ["pipelines.yaml", "near.distance", "9", "less than or equal to 8"]),
        ("near.distance=x", ["near.distance", "'x'"]),
        ("near.distanze=1", ["near.distanze", "there are: distance"]),
        ("nearer.distance=1", ["no stage 'nearer'", "exact, near"]),
        ("filter.ratings=[mild]", ["filter.ratings", "'mild'", "general"]),
        ("filter.scores=[{of: laion_v2, min: 5}]", ["filter.scores", "needs the stage curate.aesthetic"]),
        ("filter.scores=[{of: laion_v2, mim: 5}]", ["filter.scores.0.mim", "there are: of, min, min_percentile"]),
        ("distance", ["stage.setting=value"]),
    ],
)
def test_a_bad_setting_is_named(override, words, run, corpus, tmp_path):
    code, _, error = run(corpus, "--set", override)
    assert code == 2
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert all(word in error for word in words)
    assert not (tmp_path / "work").exists()


def test_a_missing_source_is_named(run, tmp_path):
    code, _, error = run(tmp_path / "nowhere")
    assert (code, error) == (2, f"error: {tmp_path}/nowhere: no such folder; give the folder that holds the pictures\n")


def test_a_dry_run_prints_what_would_run_and_touches_nothing(run, corpus, tmp_path):
    code, output, _ = run(corpus, "--set", "near.distance=2", "--dry-run")
    assert code == 0
    settings = yaml.safe_load(output)["test"]["stages"]["curate.dedupe.near"]
    keeper = ["pixels", "lossless", "quality", "bytes", "tags", "age"]
    assert settings == {"distance": 2, "blank": 0.98, "cosine": None, "keeper": keeper}
    assert not (tmp_path / "work").exists()


def test_run_and_status_say_the_same(run, corpus, monkeypatch, capfd, tmp_path):
    code, output, error = run(corpus)
    assert (code, error) == (0, "")
    assert "1 undecodable" in output
    _, status, _ = invoke(monkeypatch, capfd, "status", "--work", tmp_path / "work")
    assert output.endswith(status)
    assert "23 files = " in status.replace("24 files", "23 files")


def test_status_of_nothing(monkeypatch, capfd, tmp_path):
    code, _, error = invoke(monkeypatch, capfd, "status", "--work", tmp_path)
    assert code == 2
    assert "start with `curate run`" in error


def test_help_names_every_option():
    output = click.unstyle(CliRunner().invoke(app, ["run", "--help"]).output)
    assert all(option in output for option in OPTIONS["run"])
