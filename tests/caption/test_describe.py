"""The stage, over real connections to a server."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption.describe import STAGE
from caption.pictures import Range, pictures
from shared import pipelines
from shared.errors import UserError
from shared.stages import DECISIONS, connect

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def asked(server) -> set[tuple[int, str]]:
    """Pictures and styles that were asked for."""
    return {(request.colour, request.prompt.partition(".")[0].lower()) for request in server.requests}


def test_every_picture_gets_every_style(corpus, server, settings):
    corpus.tags = {"03.png": [("hatsune_miku", "character"), ("long_hair", "general"), ("1girl", "general")]}
    corpus.add(10)
    (corpus.source / "broken.png").write_bytes(b"no picture")
    corpus.write()
    server.say = lambda request: f"The number is {NUMBERS[request.colour]}, {request.prompt.partition('.')[0]}."
    STAGE.run(corpus.job(settings()))
    rows = corpus.rows()
    broken = rows.pop("broken.png")
    assert broken["error"] == "not_an_image"
    assert (broken["descriptions"], broken["problems"]) == ([], [])
    assert rows == {
        f"{number:02}.png": {
            "descriptions": [
                {"style": "short", "text": f"The number is {NUMBERS[number]}, Short.", "attempts": 1},
                {"style": "long", "text": f"The number is {NUMBERS[number]}, Long.", "attempts": 1},
            ],
            "problems": [],
            "error": None,
            "detail": None,
        }
        for number in range(10)
    }
    prompts = {request.prompt for request in server.requests if request.colour == 3}
    assert prompts == {"Short.\nWho: hatsune miku", "Long.\nTags: 1girl, long hair"}
    assert len(server.requests) == 20
    assert all(part.name.startswith("part-00000-0000") for part in corpus.job(settings()).folder.glob("part-*"))


def test_pictures_are_reduced_before_they_are_sent(corpus, server, settings):
    corpus.add(1)
    STAGE.run(corpus.job(settings(side=32, styles={"a": "b"})))
    (request,) = server.requests
    assert request.image.size == (32, 24)
    assert request.image.format == "JPEG"


def test_compose_reads_the_table(corpus, server, settings):
    corpus.add(1)
    STAGE.run(corpus.job(settings()))
    merge = corpus.folder / "merge/part-0.parquet"
    table = pq.read_table(merge)
    pq.write_table(table.append_column("caption", pa.nulls(len(table), pa.string())), merge)
    tables = corpus.job(settings()).tables | {"describe": corpus.folder / "describe"}
    with connect(tables, ("near",), corpus.folder) as connection:
        batch = connection.sql(Range(0, None, None).query(tables)).to_arrow_reader().read_next_batch()
    (picture,) = pictures(batch, [])
    expected = "A picture with the number 0 is here."
    assert picture.sentences == {"short": expected, "long": expected, "source": ""}


def test_what_fails_the_check_is_asked_for_again_with_another_seed(corpus, server, settings):
    corpus.add(2)
    turns = itertools.count()
    cut = ("A frog sits on a", "length")

    def say(request):
        if request.colour == 0:
            return cut if next(turns) == 0 else "A frog sits on a leaf."
        return cut

    server.say = say
    STAGE.run(corpus.job(settings(styles={"short": "Short."}, attempts=3)))
    rows = corpus.rows()
    assert rows["00.png"]["descriptions"] == [{"style": "short", "text": "A frog sits on a leaf.", "attempts": 2}]
    assert rows["01.png"]["descriptions"] == []
    assert rows["01.png"]["problems"] == [
        {"style": "short", "reason": "truncated", "detail": "it reached max_tokens", "text": cut[0]}
    ]
    seeds = [request.seed for request in server.requests]
    assert len(seeds) == len(set(seeds)) == 2 + 3


def test_characters_of_other_pictures_are_wrong_names(corpus, server, settings):
    corpus.tags = {"00.png": [("hatsune_miku", "character")], "01.png": [("kagamine_rin", "character")]}
    corpus.add(2)
    server.say = lambda _: "Hatsune Miku sings on a stage."
    STAGE.run(corpus.job(settings(styles={"short": "Short."}, attempts=1)))
    assert [row["problems"] and row["problems"][0]["reason"] for row in corpus.rows().values()] == [[], "wrong_name"]


def test_a_run_that_is_killed_asks_only_for_what_is_missing(corpus, server, settings, tmp_path):
    corpus.add(32)
    server.delay = 0.1
    one = settings({"concurrency": 3}, styles={"short": "Short."})
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\n"
        "from caption.describe import STAGE, DescribeSettings\n"
        "from shared.engine import LocalEngine\n"
        "from shared.stages import Job\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(corpus.folder)!r})\n"
        f"    settings = DescribeSettings(server=dict(model='m', url={server.url!r}, concurrency=3),\n"
        "        styles={'short': 'Short.'}, shard_rows=4)\n"
        "    tables = {name: folder / name for name in ('ingest', 'near', 'merge')}\n"
        "    STAGE.run(Job(source=str(folder / 'source'), settings=settings, folder=folder / 'describe',\n"
        "        tables=tables, deciders=('near',), engine=LocalEngine(1)))\n"
    )
    process = subprocess.Popen([sys.executable, script], env={"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(server.requests) < 14 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    before = corpus.rows()
    assert 4 <= len(before) < 32
    server.requests.clear()
    STAGE.run(corpus.job(one))
    assert {colour for colour, _ in asked(server)} == {int(name[:2]) for name in corpus.rows().keys() - before.keys()}
    assert len(server.requests) == 32 - len(before)
    assert {name: row for name, row in corpus.rows().items() if name in before} == before
    server.requests.clear()
    STAGE.run(corpus.job(one))
    assert not server.requests


def test_new_pictures_are_described_and_dropped_ones_are_not(corpus, server, settings):
    corpus.add(4)
    digest = STAGE.run(corpus.job(settings()))
    assert STAGE.run(corpus.job(settings())) == digest
    corpus.add(3, start=4)
    decided = [{"image_id": one, "keep": name != "05.png"} for one, name in corpus.ids.items()]
    pq.write_table(pa.Table.from_pylist(decided, DECISIONS), corpus.folder / "near/part-0.parquet")
    server.requests.clear()
    assert STAGE.run(corpus.job(settings())) != digest
    assert {colour for colour, _ in asked(server)} == {4, 6}
    assert len(corpus.rows()) == 6


def test_no_picture_at_all(corpus, server, settings):
    corpus.add(0)
    STAGE.run(corpus.job(settings()))
    assert corpus.rows() == {}
    assert not server.requests


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{}", "give either server or local"),
        ("{server: {model: m}, local: {model: m}}", "give either server or local"),
        ("{server: {model: m}, styles: {a: '{tag}'}}", r"styles\.a.*unknown placeholder \{tag\}; there are: "),
        ("{server: {model: m}, styles: {}}", "at least 1"),
        ("{server: {model: m}, styles: {source: b}}", "must not be called source"),
        ("{server: {model: m, url: nowhere}}", "is no address"),
        ("{server: {model: m, workers: 3}}", "no such setting; there are: model, url, concurrency"),
    ],
)
def test_settings_are_checked_before_any_work(tmp_path, values, message):
    (tmp_path / "p.yaml").write_text(f"p:\n  stages:\n    caption.describe: {values}\n")
    with pytest.raises(UserError, match=message):
        pipelines.load(tmp_path / "p.yaml")
