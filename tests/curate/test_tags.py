"""`curate tags`, on a corpus with known tags."""

import re
import sys

import pytest
import rich.console

import curate.tags
from curate.cli import main

STAGES = """
few:
  stages:
    curate.ingest: {}
    curate.posts: {}
    curate.metadata: {}
    curate.pixels: {}
    curate.dedupe.exact: {}
    curate.merge: {}
    STAGES
    curate.filter: {max_flatness: null}
"""

TAGS = [
    "1girl, Hatsune Miku, long hair, smile",
    "1girl, hatsune_miku, longhair",
    "1girl, miku, long hair",
    "1girl, rin, smile",
    "1boy, smile",
    "loli, smile",
]


@pytest.fixture
def invoke(monkeypatch, capfd, make, tmp_path):
    """Run the pipeline with other stages, then `curate tags`."""
    (tmp_path / "source").mkdir()
    for number, tags in enumerate(TAGS):
        make.draw(number).save(tmp_path / "source" / f"{number}.png")
        (tmp_path / "source" / f"{number}.txt").write_text(tags)
    (tmp_path / "tags.csv").write_text(
        "1girl,0,9,\nhatsune_miku,4,5,miku\nrin,4,5,\nlong_hair,0,8,longhair\nsmile,0,7,\n"
    )
    monkeypatch.setattr(curate.tags, "console", rich.console.Console(width=200, highlight=False))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output, error = capfd.readouterr()
        return (stop.value.code or 0), error or [re.split(r"\s*│\s*", line)[1:-1] for line in output.splitlines()]

    def start(stages, *arguments):
        (tmp_path / "pipelines.yaml").write_text(STAGES.replace("STAGES", stages))
        options = ("--pipelines", tmp_path / "pipelines.yaml", "--pipeline", "few", "--work", tmp_path / "work")
        call("run", tmp_path / "source", *options, "--workers", 1)
        code, found = call("tags", "--work", tmp_path / "work", *arguments)
        return code, [row for row in found if row] if code == 0 else found

    return start


@pytest.fixture
def normal(tmp_path):
    return f"caption.tags: {{vocabulary: {tmp_path}/tags.csv}}\n    curate.review: {{}}"


def test_before_and_after(invoke, normal):
    code, rows = invoke(normal)
    assert code == 0
    assert rows[:2] == [
        ["character", "0", "0", "2", "4"],
        ["general", "8", "15", "4", "11"],
    ]  # Without the picture that the safety rule drops: 1girl 4, Miku 2 + 1, rin 1, long hair 2 + 1, smile 3, 1boy 1.
    assert rows[2:] == [
        ["1girl", "general", "4", "80.0%", "hatsune_miku 75 %, long_hair 75 %, smile 50 %"],
        ["hatsune_miku", "character", "3", "60.0%", "1girl 100 %, long_hair 100 %, smile 33 %"],
        ["long_hair", "general", "3", "60.0%", "1girl 100 %, hatsune_miku 100 %, smile 33 %"],
        ["smile", "general", "3", "60.0%", "1girl 67 %, hatsune_miku 33 %, long_hair 33 %"],
        ["1boy", "general", "1", "20.0%", "smile 100 %"],
        ["rin", "character", "1", "20.0%", "1girl 100 %, smile 100 %"],
    ]


def test_without_the_stage_there_is_no_after(invoke):
    _, rows = invoke("")
    assert rows[0] == ["general", "8", "15"]


def test_beside_one_tag(invoke, normal):
    code, rows = invoke(normal, "--with", "Hatsune Miku")
    assert (code, rows) == (
        0,
        [
            ["1girl", "general", "3", "100.0%", "1.2 x"],  # 3/3 against 4/5
            ["long_hair", "general", "3", "100.0%", "1.7 x"],
            ["smile", "general", "1", "33.3%", "0.6 x"],
        ],
    )
    code, error = invoke(normal, "--with", "frog")
    assert (code, error) == (2, error)
    assert "no picture that is kept has the tag 'frog'" in error


def test_rare_characters(invoke, normal):
    assert invoke(normal, "--rare", 1) == (0, [["rin", "1"]])
    assert invoke(normal, "--rare", 3) == (0, [["hatsune_miku", "3"], ["rin", "1"]])
