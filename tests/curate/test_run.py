"""`curate run` as a whole: nothing is lost, nothing is done twice, and no interruption can be seen in the result."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from curate.work import Work
from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def pictures_in(corpus: Path) -> set[str]:
    """Every file that is no metadata and not hidden, found without our own code."""
    output = subprocess.run(
        ["find", ".", "-type", "f", "-not", "-path", "*/.*/*"], cwd=corpus, capture_output=True, check=True, text=True
    )
    names = {line.removeprefix("./") for line in output.stdout.splitlines()}
    return {name for name in names if not name.endswith((".json", ".txt"))}


def test_every_file_is_in_exactly_one_place_for_the_right_reason(corpus, curate):
    result = curate(corpus)
    locations = [name for row in result.curated() + result.rejects() for name in row["locations"]]
    assert sorted(locations) == sorted(pictures_in(corpus))
    assert result.reasons() == {
        "sub/resized.png": "near_duplicate",
        "sub/reencoded.jpg": "near_duplicate",
        "sub/same_pixels.bmp": "pixel_copy",
        "tiny.png": "too_small",
        "wide.png": "aspect",
        "flat.png": "flat",
        "flat2.png": "flat",
        "moves.gif": "animated",
        "empty.png": "empty_file",
        "README.md": "not_an_image",
        "cut.png": "undecodable",
        "05.png": "safety",
        "07.png": "rating",
    }
    first = result.kept()["00.png"]
    assert [tag["name"] for tag in first["tags"]] == ["1girl", "smile", "long_hair"]
    assert first["duplicates"] == ["sub/resized.png"]
    assert first["captions"] == [{"variant": "tags", "text": "1girl, smile, long hair"}]
    assert result.kept()["03.png"]["locations"] == ["03.png", "sub/deeper/copy.png"]
    ids = [row["image_id"] for row in result.curated()]
    assert ids == sorted(ids)


def test_the_dataset_is_read_by_others(corpus, curate, tmp_path):
    import datasets

    result = curate(corpus)
    loaded = datasets.load_dataset(str(result.work / "curated"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["image_id"][:] == [row["image_id"] for row in result.curated()]
    count = duckdb.sql(f"SELECT count(*) FROM '{result.work}/curated/*.parquet'").fetchall()
    assert count == [(len(loaded),)]


def test_nothing_in_the_results_depends_on_where_they_lie(corpus, curate, tmp_path):
    result = curate(corpus)
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.copytree(corpus, moved)
    other = curate(moved, work="other")
    for name, content in result.files().items():
        if name != "pipeline.yaml":
            assert other.files()[name] == content, name
            assert str(tmp_path).encode() not in content, name


def test_a_second_run_does_nothing(corpus, curate):
    times = curate(corpus).times()
    assert curate(corpus).times() == times


def test_new_files_alone_are_read(corpus, curate, make):
    before = curate(corpus)
    times, kept = before.times(), before.kept()
    make.draw(50).save(corpus / "new.png")
    after = curate(corpus)
    parts = [name for name in after.times() if "/ingest/" in name and "part-" in name]
    assert [name for name in parts if name not in times] == [parts[-1]]
    assert all(after.times()[name] == times[name] for name in parts[:-1])
    assert after.kept().keys() - kept.keys() == {"new.png"}


def test_a_changed_or_removed_file_or_sidecar_is_noticed(corpus, curate, make):
    curate(corpus)
    (corpus / "08.png").unlink()
    make.draw(60).save(corpus / "09.png")
    (corpus / "10.txt").write_text("new_tag")
    (corpus / "07.json").unlink()
    found = curate(corpus)
    fresh = curate(corpus, work="fresh")
    assert found.curated() == fresh.curated()
    assert found.rejects() == fresh.rejects()
    assert "08.png" not in found.kept().keys() | found.reasons().keys()
    assert "new_tag" in str(found.kept()["10.png"]["tags"])
    assert "07.png" in found.kept()


def test_a_file_that_changes_while_it_is_read_is_a_row(corpus, curate, monkeypatch):
    import curate.ingest as stage

    listed = stage.list_source

    def list_then_change(*arguments):
        result = listed(*arguments).read_all().to_reader()
        (corpus / "08.png").unlink(missing_ok=True)
        (corpus / "09.png").write_bytes(b"other")
        return result

    monkeypatch.setattr(stage, "list_source", list_then_change)
    details = {row["locations"][0]: row["detail"] for row in curate(corpus).rejects() if row["reason"] == "unreadable"}
    assert details == {
        "08.png": '{"error":"FileNotFoundError: No such file or directory"}',
        "09.png": '{"error":"changed since it was listed"}',
    }


def test_a_source_that_vanishes_is_an_error_and_loses_nothing(corpus, curate, tmp_path, monkeypatch):
    import curate.ingest as stage

    with monkeypatch.context() as patch:
        listed = stage.list_source

        def list_then_vanish(*arguments):
            result = listed(*arguments).read_all().to_reader()
            corpus.rename(tmp_path / "gone")
            return result

        patch.setattr(stage, "list_source", list_then_vanish)
        with pytest.raises(UserError, match="the source has vanished"):
            curate(corpus)
    (tmp_path / "gone").rename(corpus)
    assert curate(corpus).files() == curate(corpus, work="other").files()


def test_two_workers_write_the_bytes_of_one(corpus, curate):
    assert curate(corpus, workers=2).files() == curate(corpus, work="other").files()


class KilledError(BaseException):
    """Not an Exception: nothing may catch it."""


def test_an_interruption_at_any_commit_leaves_no_trace(corpus, curate, monkeypatch):
    """Every file appears by a rename: interrupt the run at each of them, then go on."""
    for path in [*corpus.glob("[!.]*.*"), *corpus.glob("sub/*.*")]:
        if path.stem not in ("00", "02", "resized", "same_pixels", "flat", "empty"):
            path.unlink()
    expected = curate(corpus, work="expected").files()
    renames = {"replace": os.replace, "rename": os.rename}
    left = 0

    def stop_at_last(rename):
        def renamed(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            rename(*arguments)

        return renamed

    commits = 0
    while True:
        left = commits
        try:
            with monkeypatch.context() as patch:
                for name, rename in renames.items():
                    patch.setattr(os, name, stop_at_last(rename))
                curate(corpus, work=f"killed{commits}")
            break
        except KilledError:
            assert curate(corpus, work=f"killed{commits}").files() == expected
        commits += 1
    assert commits > 15


def gone(session: int) -> bool:
    """Every process of the session ends within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_killed_process_leaves_no_trace(corpus, curate, pipelines, tmp_path):
    expected = curate(corpus, work="expected").files()
    options = {"--pipelines": pipelines, "--pipeline": "test", "--work": tmp_path / "killed", "--workers": 2}
    arguments = ["run", str(corpus), *(str(word) for option in options.items() for word in option)]
    command = [sys.executable, "-c", "from curate.cli import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    chance = random.Random(0)
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            time.sleep(chance.uniform(1.0, 3.0))
            process.kill()
        assert gone(process.pid), "workers outlive the process that was killed"
    found = curate(corpus, work="killed")
    assert found.files() == expected
    leftovers = [path.name for path in found.work.rglob(".*")]
    assert leftovers == [".lock"]


def test_other_settings_make_other_tables_and_old_ones_are_found_again(corpus, curate):
    first = curate(corpus)
    files = first.files()
    second = curate(corpus, "near.distance=0", "filter.ratings=[explicit]")
    assert "07.png" in second.kept()
    assert second.files().keys() > files.keys()
    third = curate(corpus)
    assert all(third.files()[name] == content for name, content in files.items())


def test_a_work_directory_belongs_to_one_source(corpus, curate, tmp_path, make):
    curate(corpus)
    other = tmp_path / "other_source"
    other.mkdir()
    make.draw(1).save(other / "a.png")
    with pytest.raises(UserError, match=f"made from {corpus}, not from {other}"):
        curate(other)
    with pytest.raises(UserError, match="lies inside the source"):
        curate(tmp_path)


def test_a_missing_source_leaves_the_work_directory_free(curate, corpus, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        curate(tmp_path / "nowhere")
    curate(corpus)


@pytest.mark.parametrize("stage", ["ingest", "dedupe.exact", "merge", "filter"])
def test_a_pipeline_cannot_do_without_safety_or_the_dataset(stage, curate, corpus, pipelines):
    lines = pipelines.read_text().splitlines()
    pipelines.write_text("\n".join(line for line in lines if f"curate.{stage}:" not in line))
    with pytest.raises(UserError, match=f"lacks the stage '{stage.rpartition('.')[2]}'"):
        curate(corpus)


def test_two_runs_do_not_meet(corpus, curate, tmp_path):
    with Work(tmp_path / "work").locked(), pytest.raises(UserError, match="another `curate run` is at work"):
        curate(corpus)


def test_a_corpus_without_one_good_picture_gives_an_empty_dataset(curate, tmp_path):
    root = tmp_path / "bad"
    root.mkdir()
    (root / "a.png").write_bytes(b"no")
    result = curate(root)
    assert result.curated() == []
    assert result.reasons() == {"a.png": "not_an_image"}
