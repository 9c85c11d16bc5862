"""The three commands, one after the other, on real pictures and with the shipped pipelines."""

from pathlib import Path

import duckdb
import pytest
import typer.testing
import yaml

import curate.cli
import train.cache.cli
import train.cli
from demo.tiny_lumina import write_tiny_lumina
from shared.pipelines import SHIPPED, load
from train.cache.reader import CacheReader
from train.cache.verify import verify
from train.records import read

SMALL = ["--set", "ingest.shard_rows=64", "--set", "filter.min_side=16", "--set", "filter.min_pixels=0"]
SMALL += ["--set", "cache.areas=[64]", "--set", "train.steps=3", "--set", "train.samples.steps=1"]


def invoke(app: typer.Typer, *words: object) -> None:
    result = typer.testing.CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_illustrations_go_through_all_three_commands(shared_data: Path, tmp_path: Path):
    work, model = tmp_path / "work", write_tiny_lumina(tmp_path / "model")
    source = shared_data / "illustrations"
    invoke(curate.cli.app, "run", source, "--pipeline", "demo", "--work", work, "--workers", 2, *SMALL)
    invoke(train.cache.cli.app, "--work", work, "--model", model)
    invoke(train.cli.app, "--work", work, "--model", model)

    ((curated,),) = duckdb.sql(f"SELECT count(*) FROM '{work}/curated/part-*.parquet'").fetchall()
    assert curated > 300
    reader = CacheReader(work)
    assert reader.images == curated, "every curated picture is in the cache"
    assert not verify(work)
    shapes = {tuple(reader.latent(index).shape) for index in range(reader.images)}
    assert len(shapes) > 6, "pictures keep their own aspect"
    assert len(read(work / "runs/default/metrics.jsonl")) == 3
    assert (work / "runs/default/checkpoints/00000003/transformer/config.json").exists()


@pytest.mark.parametrize("name", ["demo", "booru", "illustration", "illustrious-lu-v0.03"])
def test_shipped_pipelines_are_valid_and_survive_being_written_down(name: str, tmp_path: Path):
    pipeline = load(SHIPPED, name)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline.document(), sort_keys=False))
    assert load(tmp_path / "pipeline.yaml") == pipeline


def test_the_packages_never_import_one_another():
    root = SHIPPED.parent
    packages = ("curate", "caption", "train")
    for package in packages:
        others = [name for name in packages if name != package]
        for path in (root / package).rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    assert words[1].split(".")[0] not in others, f"{path}: {line}"
    for path in (root / "shared").rglob("*.py"):
        assert not [w for w in packages if f"from {w}" in path.read_text() or f"import {w}" in path.read_text()], path
