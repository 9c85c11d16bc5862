"""The pipeline `illustration` from end to end: tagger, OCR and captioner are real, the models behind them tiny."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import typer.testing
from PIL import Image, ImageDraw, ImageFont

import curate.cli
from tests.caption.conftest import Server, serve
from tests.caption.test_tagger import write_tagger


@pytest.fixture
def captioner() -> Iterator[Server]:
    """Knows what it is told: the characters in the prompt."""
    with serve() as server:
        server.say = lambda request: (
            f"A girl stands there, asked {'briefly' if 'one sentence' in request.prompt else 'at length'}."
        )
        yield server


def write_corpus(source: Path) -> None:
    """Drawings with tags; one says HELLO, one is tagged as what must not be."""
    source.mkdir()
    for number in range(6):
        image = Image.new("RGB", (800, 760), (255, 255 - 20 * number, 200))
        pen = ImageDraw.Draw(image)
        pen.ellipse((40 * number, 90, 300 + 50 * number, 600), "navy", "black", 9)
        pen.rectangle((300, 400 - 50 * number, 420 + 60 * number, 700), "green")
        if number == 3:
            pen.rectangle((60, 250, 740, 450), "white")
            pen.text((120, 290), "HELLO", "black", ImageFont.load_default(130))
        image.save(source / f"{number}.png")
        tags = "1girl, solo, hatsune miku" if number else "1girl, loli"
        (source / f"{number}.json").write_text(f'{{"tags": "{tags}", "rating": "{"s" if number else "e"}"}}')


def test_models_look_at_every_picture(tmp_path: Path, captioner: Server) -> None:
    write_corpus(tmp_path / "source")
    (tmp_path / "tagger").mkdir()
    write_tagger(tmp_path / "tagger")
    work = tmp_path / "work"
    options = ["--work", work, "--pipeline", "illustration", "--workers", 1]
    options += [
        "--set",
        f"tagger.model={tmp_path}/tagger",
        "--set",
        "tagger.thresholds={general: 0.3, character: 0.3, copyright: 0.3}",
    ]
    options += [
        "--set",
        f"describe.server.url={captioner.url}",
        "--set",
        "review.ratings=[general, sensitive, questionable, explicit]",
    ]

    def run() -> None:
        words = [str(word) for word in ("run", tmp_path / "source", *options)]
        result = typer.testing.CliRunner().invoke(curate.cli.app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    run()
    rejected = duckdb.sql(f"SELECT locations, stage, reason FROM '{work}/rejects.parquet'").fetchall()
    assert rejected == [(["0.png"], "filter", "safety")]
    rows = {
        locations[0]: ({caption["variant"]: caption["text"] for caption in captions}, tags, rating, weight)
        for locations, captions, tags, rating, weight in duckdb.sql(
            f"SELECT locations, captions, tags, rating, weight FROM '{work}/curated/*.parquet'"
        ).fetchall()
    }
    assert sorted(rows) == [f"{number}.png" for number in range(1, 6)]
    for captions, tags, rating, weight in rows.values():
        assert captions.keys() == {"tags", "augmented", "augmented-1", "augmented-2", "xml", "text", "tags_text"}
        assert captions["tags"].startswith("1girl, solo, hatsune miku, ") or "solo, 1girl" in captions["tags"]
        assert captions["text"].startswith("A girl stands there, asked ")
        assert {"source"} <= {tag["origin"] for tag in tags} <= {"source", "tagger"}
        assert (rating, weight) == ("sensitive", 1.0)
    assert {name for name, row in rows.items() if 'text "HELLO"' in row[0]["tags"]} == {"3.png"}
    seen = duckdb.sql(f"SELECT count(*) FROM '{work}/tables/tagger/*/part-*.parquet' WHERE len(tags) > 0").fetchall()
    assert seen == [(5,)]
    asked = [request.prompt for request in captioner.requests]
    assert all("hatsune miku" in prompt for prompt in asked)
    assert sum("HELLO" in prompt for prompt in asked) == len(asked) // 5
    run()
    assert len(captioner.requests) == len(asked), "nothing is asked again"
