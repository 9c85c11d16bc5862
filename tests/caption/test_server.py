"""The client, against a server over real connections that does what servers do."""

import asyncio
import base64
import email.utils
import io
import json
import socket
import time

import pytest
from PIL import Image
from pydantic import ValidationError

from caption import retry
from caption.drafts import Answer
from caption.retry import Patience
from caption.server import Client, Garbage, ServerSettings, Silent
from shared.errors import UserError


def jpeg() -> str:
    file = io.BytesIO()
    Image.new("RGB", (2, 1)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = jpeg()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF", 0.01)


def ask(server, times=1, **settings):
    """What the client makes of a server."""
    about = {"model": "m", "url": server if isinstance(server, str) else server.url, "timeout": 0.5, "retries": 3}

    async def run():
        async with Client(ServerSettings(**about | settings)) as client:
            return await asyncio.gather(
                *(client.ask("Describe.", PICTURE, seed) for seed in range(times)), return_exceptions=True
            )

    found = asyncio.run(run())
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found if times > 1 else found[0]


def test_what_is_sent(server, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    assert ask(server, api_key_env="SECRET", max_tokens=7, temperature=0.25, model="qwen") == Answer(
        "A picture with the number 0 is here.", "stop"
    )
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sesame"
    assert request.prompt == "Describe."
    del request.body["messages"]
    assert request.body == {"model": "qwen", "max_tokens": 7, "temperature": 0.25, "seed": 0}


@pytest.mark.parametrize(
    "trouble", ["drop", "stall", (500, {}, "oops"), (503, {}, ""), (429, {}, "slow down"), (408, {}, "")]
)
def test_what_passes_is_tried_again(server, trouble):
    server.say = lambda request: trouble if request.number < 2 else "A frog sits there."
    assert ask(server).text == "A frog sits there."
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "detail"),
    [
        ("drop", "disconnected"),
        ("stall", "within 0.2 seconds"),
        ("dribble", "within 0.2 seconds"),
        ((500, {}, "oops\nno"), "HTTP 500: oops no"),
    ],
)
def test_what_does_not_pass_is_a_problem(server, trouble, detail):
    server.say = lambda _: trouble
    with pytest.raises(Silent, match=detail) as caught:
        ask(server, timeout=0.2)
    assert caught.value.problem.reason == "server"
    assert len(server.requests) == 4


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_waited_for_by_all(server, date):
    until = time.monotonic() + 1.0
    when = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
    server.say = lambda request: (429, {"Retry-After": when}, "") if request.number == 0 else "A frog sits there."
    ask(server, times=2, concurrency=1)
    assert [request.time < until for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("status", "headers"),
    [(429, {}), (429, {"Retry-After": "0"}), (429, {"Retry-After": "0.01"}), (503, {"Retry-After": "0.01"})],
)
def test_a_busy_server_uses_up_no_retry(server, status, headers):
    busy = (status, headers, "")
    turns = [busy] * 5 + ["drop", busy, "drop", busy, "A frog sits there."]
    server.say = lambda request: turns[request.number]
    assert ask(server, retries=2).text == "A frog sits there."
    assert len(server.requests) == len(turns)


def test_patience_with_a_busy_server_ends(server, capsys):
    server.say = lambda _: (429, {"Retry-After": "0.05"}, "slow down")
    with pytest.raises(Silent, match=r"HTTP 429: slow down \(it was busy for longer than describe.server.patience\)"):
        ask(server, patience=0.3, retries=0)
    assert len(server.requests) >= 2
    assert capsys.readouterr().out.count("is busy") == 1


def test_patience_is_counted_from_the_first_time_on(monkeypatch):
    now = 100.0
    monkeypatch.setattr(retry.time, "monotonic", lambda: now)
    patience = Patience(60)
    now += 1000
    assert patience.lasts(60)
    now += 40
    assert patience.lasts(20)
    assert not patience.lasts(21)
    now += 21
    assert not patience.lasts(None)


LATER = pytest.param(email.utils.formatdate(time.time() + 1e6, usegmt=True), id="date")


@pytest.mark.parametrize("when", ["3601", "inf", LATER])
def test_what_would_last_longer_is_not_waited_for(server, when):
    server.say = lambda _: (429, {"Retry-After": when}, "come back tomorrow")
    with pytest.raises(Silent, match="come back tomorrow"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 302])
def test_what_is_wrong_for_all_ends_the_run(server, status):
    server.say = lambda _: (status, {}, "no")
    with pytest.raises(
        UserError, match=rf"{server.url}/chat/completions: HTTP {status}: no; .* start the command again"
    ):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_one_picture_is_not_tried_again(server, status):
    server.say = lambda _: (status, {}, "too wide")
    with pytest.raises(Silent, match=f"HTTP {status}: too wide") as caught:
        ask(server)
    assert caught.value.problem.reason == "refused"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "content",
    ["", "<html>", "[]", "null", "{}", '{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": null}]}']
    + [json.dumps({"choices": [{"message": {"content": text}}]}) for text in (None, " ", 7, [])],
)
def test_garbage_is_garbage(server, content):
    server.say = lambda _: (200, {}, content)
    with pytest.raises(Garbage):
        ask(server)


def test_why_it_stopped_is_told(server):
    server.say = lambda _: ("A frog and", "length")
    assert ask(server) == Answer("A frog and", "length")
    server.say = lambda _: ("", "content_filter")
    assert ask(server) == Answer("", "content_filter")


def test_as_many_requests_as_allowed_and_no_more(server):
    server.delay = 0.1
    ask(server, times=40, concurrency=8, timeout=20)
    assert server.most == 8


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=rf"{url}/chat/completions: no connection"):
        ask(url)


def test_a_key_that_is_not_there(server):
    with pytest.raises(UserError, match=r"api_key_env = 'NO_SUCH_KEY': the environment has no such variable"):
        ask(server, api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://a:b/v1", ""])
def test_addresses_that_are_none(url):
    with pytest.raises(ValidationError, match="is no address"):
        ServerSettings(model="m", url=url)


def test_the_address_does_not_name_the_table():
    one = ServerSettings(
        model="m", url="http://a/v1/", concurrency=1, timeout=1, retries=1, patience=1, api_key_env="A"
    )
    assert one.url == "http://a/v1"
    assert one.what() == ServerSettings(model="m").what()
    assert one.what() != ServerSettings(model="other").what()
    assert ServerSettings.model_validate(one.model_dump(mode="json")) == one, "it is written down with the pipeline"
