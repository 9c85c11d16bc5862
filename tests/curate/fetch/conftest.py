"""A web server with everything that can happen to a download, and small pictures."""

import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def png(number: int) -> bytes:
    """A small picture with alpha that is like no other."""
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (number, 2 * number % 256, 3, 77)).save(file, "PNG")
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Counts the requests for each path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.hooks: dict[str, Callable[[], object]] = {}
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """Clients that give up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        self.server.hooks.get(self.path, lambda: None)()
        what, _, rest = self.path.removeprefix("/").partition("/")
        tries = self.server.requests[self.path]
        if what == "ok":
            self.answer(200, png(int(rest)))
        elif what == "flaky":
            self.answer(500, b"") if tries < 3 else self.answer(200, png(200))
        elif what == "later":
            self.answer(503, b"") if tries < 2 else self.answer(200, png(201))
        elif what == "stall":
            self.server.over.wait(20)
        elif what == "cut":
            self.answer(200, png(1)[:40], length=1000)
        elif what == "html":
            self.answer(200, b"<!DOCTYPE html><title>sign in</title>")
        elif what == "redirect":
            self.answer(302, b"", Location="/ok/7")
        elif what == "noai":
            self.answer(200, png(1), **{"X-Robots-Tag": "noai"})
        elif self.path == "/%E7%B5%B5%20%C3%A9.png?tag=a%26b":
            self.answer(200, png(202))
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("curate.fetch.download.PAUSE", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def read(tar: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """The pictures of a tar by name, with their metadata."""
    with tarfile.open(tar) as file:
        members = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    return {
        name: (data, json.loads(members[f"{name[:6]}.json"]))
        for name, data in members.items()
        if not name.endswith(".json")
    }


@pytest.fixture
def make() -> Any:
    """The functions above, for tests (which cannot import a conftest)."""

    class Make:
        png = staticmethod(png)
        read = staticmethod(read)

    return Make
