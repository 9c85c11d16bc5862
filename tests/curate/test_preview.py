"""`curate filter`: what it shows is what it does, and showing writes nothing."""

import json
import re
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from curate.cli import main

AESTHETIC = '''
from shared.settings import Settings
from shared.stages import Stage
from shared.tables import write_query
import pyarrow as pa

SCHEMA = pa.schema([("image_id", pa.string()), ("scores", pa.struct([("laion_v2", pa.float32())]))])
QUERY = """
    SELECT image_id, struct_pack(laion_v2 := -sum(bytes)) AS scores
    FROM ingest SEMI JOIN survivors USING (image_id) GROUP BY image_id ORDER BY image_id
"""

def run(job):
    with job.connect() as connection:
        write_query(connection, QUERY, job.folder, SCHEMA)

STAGE = Stage(settings=Settings, version=1, run=run, adds=("scores",))
'''
"""A stage of one's own: the smaller the files, the better."""

HALF = "filter.scores=[{of: laion_v2, min_percentile: 0.5}]"
CHANGES = (HALF, "filter.min_side=0", "filter.max_flatness=null", "filter.ratings=[general, unknown, explicit]")


@pytest.fixture
def call(monkeypatch, capfd):
    """Call `curate`: the exit status, what it says, its error."""

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capfd.readouterr())

    return start


@pytest.fixture
def scored(pipelines, tmp_path, monkeypatch):
    """The test pipeline, with scores."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "aesthetic.py").write_text(AESTHETIC)
    monkeypatch.syspath_prepend(tmp_path)
    text = pipelines.read_text()
    pipelines.write_text(text.replace("    curate.merge", "    mine.aesthetic: {}\n    curate.merge"))


def every_file(folder):
    """All of a folder, hidden files too: name, content, time; the folders' times as well."""
    return {path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def changes(*overrides):
    return [word for override in overrides for word in ("--set", override)]


def verdicts(work):
    """The reason of every picture, as the last run decided."""
    folder = work / json.loads((work / "tables.json").read_text())["tables"]["filter"]
    return {row["image_id"]: row["reason"] for row in pq.read_table(folder).to_pylist()}


def shown(output):
    """The rows of the table that was printed, by reason."""
    rows = re.findall(r"(\w+)\s*│\s*([\d,]+)\s*│\s*([\d.]+)%\s*│\s*([\d,]+)\s*│\s*([\d,]+)", output)
    return {reason: tuple(map(float, numbers)) for reason, *numbers in rows}


@pytest.mark.usefixtures("scored")
def test_what_is_shown_is_what_a_run_does_and_showing_writes_nothing(corpus, curate, call, tmp_path):
    work = curate(corpus).work
    before, files = verdicts(work), every_file(work)
    code, output, error = call("filter", "--work", work, *changes(*CHANGES), "--dry-run")
    assert (code, error) == (0, "")
    assert every_file(work) == files

    code, _, error = call("filter", "--work", work, *changes(*CHANGES))
    assert (code, error) == (0, "")
    after = verdicts(work)
    assert before.keys() == after.keys()
    total, dropped = len(after), Counter(after.values())
    kept = dropped.pop(None)
    expected = {
        reason: (
            dropped[reason],
            round(100 * dropped[reason] / total, 1),
            sum(before[key] is None and after[key] == reason for key in after),
            sum(before[key] == reason and after[key] is None for key in after),
        )
        for reason in {*before.values(), *after.values()} - {None}
    }
    assert shown(output) == expected
    assert {"aesthetic", "safety", "too_small", "flat", "rating"} <= expected.keys()
    assert any(fresh for _, _, fresh, _ in expected.values())
    assert any(freed for *_, freed in expected.values())
    assert (
        f"{kept} of {total} pictures would be kept; under the current settings {Counter(before.values())[None]}"
        in output
    )


@pytest.mark.usefixtures("scored")
def test_it_gives_what_a_run_with_these_settings_gives(corpus, curate, call):
    first, other = curate(corpus), curate(corpus, *CHANGES, work="other")
    assert first.curated() != other.curated()
    ingested = {name: time for name, time in first.times().items() if "/ingest/" in name}
    code, output, _ = call("filter", "--work", first.work, *changes(*CHANGES))
    assert code == 0
    assert "aesthetic" in output
    assert {name: time for name, time in first.times().items() if "/ingest/" in name} == ingested
    assert other.files().items() <= first.files().items()


def test_without_changes_nothing_is_new(corpus, curate, call):
    work = curate(corpus).work
    _, output, _ = call("filter", "--work", work, "--dry-run")
    rows = shown(output)
    assert {reason: row[0] for reason, row in rows.items()} == Counter(filter(None, verdicts(work).values()))
    assert all(row[2:] == (0, 0) for row in rows.values())


def test_safety_cannot_be_opened(corpus, curate, call):
    work = curate(corpus).work
    everything = "filter.ratings=[general, sensitive, questionable, explicit, unknown]"
    _, output, _ = call("filter", "--work", work, *changes(everything), "--dry-run")
    assert shown(output)["safety"][0] == 1
    code, _, error = call("filter", "--work", work, *changes("filter.safety=false"), "--dry-run")
    assert code == 2
    assert "no such setting" in error


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_where_nothing_has_run_it_says_so(options, call, tmp_path):
    code, _, error = call("filter", "--work", tmp_path / "new", *options)
    assert code == 2
    assert "nothing has run here yet; start with `curate run`" in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("near.distance=2", "write it as filter.setting=value; `curate run` sets other stages"),
        ("filter", "write it as filter.setting=value"),
        ("filter.min_side=x", "pipeline.yaml: test.stages.curate.filter.min_side = 'x'"),
        ("filter.scores=[{of: laion_v2, min: 5}]", "needs the stage curate.aesthetic before curate.filter"),
        ("filter.scores=[{of: laion_v2}]", "give one of min and min_percentile"),
    ],
)
def test_a_bad_setting_changes_nothing(options, override, words, corpus, curate, call):
    work = curate(corpus).work
    files = every_file(work)
    code, _, error = call("filter", "--work", work, *changes(override), *options)
    assert code == 2
    assert error.startswith("error: ")
    assert words in error
    assert every_file(work) == files


@pytest.mark.usefixtures("scored")
def test_an_unknown_score_names_those_there_are(corpus, curate, call):
    work = curate(corpus).work
    override = changes("filter.scores=[{of: {laion_v2: 1, anime: 1}, min: 5}]")
    code, _, error = call("filter", "--work", work, *override, "--dry-run")
    assert (code, error) == (2, "error: filter.scores: no score 'anime'; there are: laion_v2\n")


def test_stages_before_the_filter_must_have_finished(corpus, curate, call, monkeypatch):
    from curate import merge

    class KilledError(BaseException):
        pass

    def stop(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(merge, "owners", stop)
        with pytest.raises(KilledError):
            curate(corpus)
    expected = curate(corpus, work="other")
    work = expected.work.with_name("work")
    code, _, error = call("filter", "--work", work, "--dry-run")
    assert (code, error) == (
        2,
        f"error: {work}: the stage merge has not finished; `curate run` goes on where it stopped\n",
    )
    assert call("filter", "--work", work)[0] == 0
    assert yaml.safe_load((work / "pipeline.yaml").read_text())["source"] == str(corpus)
    assert (work / "rejects.parquet").read_bytes() == expected.files()["rejects.parquet"]
