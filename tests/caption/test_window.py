"""The stage with a server that has its troubles, and with one that is slow."""

import pytest

from caption import window
from caption.describe import STAGE
from shared.errors import UserError


def test_troubles_leave_no_trace(corpus, server, settings):
    corpus.add(16)
    troubles = ["drop", (500, {}, ""), (429, {"Retry-After": "0"}, ""), (200, {}, "<html>")]
    server.say = lambda request: troubles[request.number // 3 % 4] if request.number % 3 == 0 else "A frog sits there."
    STAGE.run(corpus.job(settings({"retries": 6}, attempts=6)))
    assert all(len(row["descriptions"]) == 2 and not row["error"] for row in corpus.rows().values())


def test_a_picture_that_is_refused_is_a_row(corpus, server, settings):
    corpus.add(8)
    server.say = lambda request: (400, {}, "too wide") if request.colour == 5 else "A frog sits on a leaf."
    STAGE.run(corpus.job(settings()))
    rows = corpus.rows()
    row = rows.pop("05.png")
    assert (row["error"], row["detail"]) == ("refused", "HTTP 400: too wide")
    assert all(len(row["descriptions"]) == 2 and not row["error"] for row in rows.values())


def test_a_picture_without_an_answer_is_a_row_and_what_was_said_is_kept(corpus, server, settings):
    corpus.add(6)
    bad = lambda request: request.colour == 5 and "Long" in request.prompt  # noqa: E731
    server.say = lambda request: "drop" if bad(request) else "A frog sits on a leaf."
    STAGE.run(corpus.job(settings()))
    row = corpus.rows()["05.png"]
    assert row["error"] == "server"
    assert [text["style"] for text in row["descriptions"]] == ["short"]


@pytest.mark.parametrize("trouble", ["drop", (400, {}, "no such option")])
def test_a_server_that_never_answers_ends_the_run_without_a_row(corpus, server, settings, trouble, monkeypatch):
    monkeypatch.setattr(window, "GONE", 6)
    corpus.add(32)
    server.say = lambda _: trouble
    with pytest.raises(UserError, match=r"6 pictures in a row had no answer, .* start the command again"):
        STAGE.run(corpus.job(settings(shard_rows=32)))
    assert not list((corpus.folder / "describe").glob("part-*"))


@pytest.mark.parametrize("trouble", [(502, {}, ""), (200, {}, "<html>")])
def test_a_server_that_fails_in_between_leaves_no_row_of_it(corpus, server, settings, trouble, monkeypatch):
    monkeypatch.setattr(window, "GONE", 6)
    corpus.add(32)
    server.say = lambda request: "A frog sits on a leaf." if request.number < 20 else trouble
    with pytest.raises(UserError, match="6 pictures in a row had no answer"):
        STAGE.run(corpus.job(settings(styles={"short": "Short."}, shard_rows=1)))
    rows = corpus.rows()
    assert 10 <= len(rows) <= 20
    assert all(row["descriptions"] for row in rows.values())


@pytest.mark.parametrize(
    ("trouble", "bad"),
    [("drop", range(1, 16, 2)), ((200, {}, ""), range(1, 16, 2)), ((400, {}, ""), range(4, 16))],
)
def test_pictures_that_fail_now_and_then_do_not_end_the_run(corpus, server, settings, trouble, bad, monkeypatch):
    monkeypatch.setattr(window, "GONE", 4)
    corpus.add(16)
    server.say = lambda request: trouble if request.colour in bad else "A frog sits on a leaf."
    STAGE.run(corpus.job(settings({"concurrency": 1, "retries": 0}, styles={"short": "Short."}, attempts=1)))
    assert [not row["descriptions"] for _, row in sorted(corpus.rows().items())] == [n in bad for n in range(16)]


def test_what_had_no_answer_is_asked_again_by_the_next_run_and_nothing_else(corpus, server, settings, capsys):
    troubles = {5: "drop", 9: (200, {}, "<html>")}
    corpus.add(12)
    (corpus.source / "broken.png").write_bytes(b"no picture")
    corpus.write()
    server.say = lambda request: troubles.get(request.colour, "A frog sits on a leaf.")
    job = corpus.job(settings({"retries": 0}))
    digest = STAGE.run(job)
    before = corpus.rows()
    assert {name: row["error"] for name, row in before.items() if row["error"]} == {
        "05.png": "server", "09.png": "garbage", "broken.png": "not_an_image",
    }  # fmt: skip
    assert "2 pictures had no answer" in capsys.readouterr().out

    server.requests.clear()
    server.say = lambda request: "drop" if request.colour == 9 else "A newt sits on a leaf."
    again = STAGE.run(job)
    assert {request.colour for request in server.requests} == {5, 9}
    after = corpus.rows()
    assert [text["text"] for text in after["05.png"]["descriptions"]] == ["A newt sits on a leaf."] * 2
    assert {name for name in after if after[name] != before[name]} == {"05.png", "09.png"}
    assert after["09.png"]["error"] == "server"
    assert "1 pictures had no answer" in capsys.readouterr().out
    assert again != digest, "later stages see it"

    server.say = lambda _: "A newt sits on a leaf."
    STAGE.run(job)
    server.requests.clear()
    STAGE.run(job)
    assert not server.requests
    assert not capsys.readouterr().out


def test_a_server_that_is_gone_by_then_does_not_stop_later_stages(corpus, server, settings, capsys):
    corpus.add(4)
    server.say = lambda request: "drop" if request.colour == 2 else "A frog sits on a leaf."
    job = corpus.job(settings({"retries": 0}))
    digest, before = STAGE.run(job), corpus.rows()
    server.socket.close()
    assert STAGE.run(job) == digest
    assert corpus.rows() == before
    assert "asked again without success: " in capsys.readouterr().out
    corpus.add(1, start=4)
    with pytest.raises(UserError, match="no connection"):
        STAGE.run(corpus.job(settings({"retries": 0})))
    assert corpus.rows() == before


@pytest.mark.parametrize("gone", [False, True])
def test_the_run_stops_keeps_what_is_finished_and_goes_on(corpus, server, settings, gone):
    corpus.add(16)

    def say(request):
        if request.number < 10:
            return "A frog sits on a leaf."
        if gone:
            server.socket.close()  # From now on, there is nobody to connect to.
            return "drop"
        return 401, {}, "who are you"

    server.say = say
    one = settings({"concurrency": 2}, styles={"short": "Short."})
    with pytest.raises(UserError, match="no connection" if gone else "HTTP 401: who are you"):
        STAGE.run(corpus.job(one))
    finished = corpus.rows()
    assert 4 <= len(finished) < 16
    assert all(row["descriptions"] for row in finished.values())
    if not gone:
        server.requests.clear()
        server.say = lambda _: "A frog sits on a leaf."
        STAGE.run(corpus.job(one))
        assert len(server.requests) == 16 - len(finished)
        assert len(corpus.rows()) == 16


def test_the_server_is_kept_busy_across_shards(corpus, server, settings):
    corpus.add(30)
    server.delay = 0.3
    STAGE.run(corpus.job(settings({"concurrency": 10}, styles={"short": "Short."}, shard_rows=2), workers=2))
    assert server.most == 10
    times = sorted(request.time for request in server.requests)
    assert len(times) == 30
    assert times[-1] - times[10] < 2 * 0.3 * 30 / 10  # Half of it, were there never a slot free.
