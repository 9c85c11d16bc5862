"""A server of the OpenAI chat API, over real connections."""

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from caption import retry
from caption.describe import DescribeSettings
from shared.engine import LocalEngine
from shared.stages import DECISIONS, TAG, Job

STYLES = {"short": "Short.\nWho: {characters}", "long": "Long.\nTags: {general}"}

Say = Callable[["Request"], Any]
"""What the server answers: a text, (text, finish reason), a status with headers and body, or a word: see `_Handler`."""


class Request:
    """A question as it came in."""

    def __init__(self, number: int, path: str, headers: Any, body: dict[str, Any]) -> None:
        self.number, self.path, self.headers, self.body, self.time = number, path, headers, body, time.monotonic()
        ((message,), self.seed) = body["messages"], body["seed"]
        picture, text = message["content"]
        self.prompt: str = text["text"]
        head, data = picture["image_url"]["url"].split(",")
        assert head == "data:image/jpeg;base64"
        self.image = Image.open(io.BytesIO(base64.b64decode(data)))
        self.image.load()

    @property
    def colour(self) -> int:
        """Of the picture, which is one of `Corpus`: its number."""
        return round(self.image.getpixel((0, 0))[0] / 8)


class Server(ThreadingHTTPServer):
    """Answers as `say` says, after `delay` seconds."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say: Say = lambda request: f"A picture with the number {request.colour} is here."
        self.delay = 0.0
        self.requests: list[Request] = []
        self.now, self.most = 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            request = Request(len(server.requests), self.path, self.headers, body)
            server.requests.append(request)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.delay)
            said = server.say(request)
        finally:
            with server.lock:
                server.now -= 1
        self._send(said)

    def _send(self, said: Any) -> None:
        if said == "drop":
            self.close_connection = True
            return
        if said == "stall":
            time.sleep(3)
            self.close_connection = True
            return
        if said == "dribble":
            self._dribble()
            return
        status, headers, content = 200, {}, ""
        if isinstance(said, tuple) and isinstance(said[0], int):
            status, headers, content = said
        else:
            text, finish = said if isinstance(said, tuple) else (said, "stop")
            content = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def _dribble(self) -> None:
        """A byte now and then, without an end."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        for _ in range(30):
            self.wfile.write(b" ")
            time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serve() -> Iterator[Server]:
    """A server that runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


class Corpus:
    """Up to 32 pictures of one grey each, and the tables of the stages before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source"
        self.source.mkdir()
        for table in "ingest", "near", "merge", "describe":
            (folder / table).mkdir()
        self.tags: dict[str, list[tuple[str, str]]] = {}
        self.ids: dict[str, str] = {}

    def add(self, count: int, start: int = 0) -> None:
        """More pictures: files 00.png, 01.png and so on."""
        for number in range(start, start + count):
            Image.new("RGB", (64, 48), (8 * number,) * 3).save(self.source / f"{number:02}.png")
        self.write()

    def write(self) -> None:
        """The tables, for the files there are."""
        self.ids = {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in sorted(self.source.iterdir())}
        ingest = [{"image_id": one, "location": name, "error": None} for one, name in self.ids.items()]
        self._table("ingest", ingest, pa.schema([(name, pa.string()) for name in ("image_id", "location", "error")]))
        self._table("near", [{"image_id": one, "keep": True} for one in self.ids], DECISIONS)
        merged = [{"image_id": one, "tags": self._tags(name), "rating": "general"} for one, name in self.ids.items()]
        merge = pa.schema([("image_id", pa.string()), ("tags", pa.list_(TAG)), ("rating", pa.string())])
        self._table("merge", merged, merge)

    def _tags(self, name: str) -> list[dict[str, str]]:
        return [{"name": tag, "category": kind, "origin": "source"} for tag, kind in self.tags.get(name, [])]

    def _table(self, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema), self.folder / name / "part-0.parquet")

    def job(self, settings: Any, workers: int = 1) -> Job[Any]:
        return Job(
            source=str(self.source),
            settings=settings,
            folder=self.folder / "describe",
            tables={name: self.folder / name for name in ("ingest", "near", "merge")},
            deciders=("near",),
            engine=LocalEngine(workers),
        )

    def rows(self) -> dict[str, dict[str, Any]]:
        """What the table says, by the name of the file."""
        parts = sorted((self.folder / "describe").glob("part-*"))
        rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
        assert len({row["image_id"] for row in rows}) == len(rows)
        return {self.ids[row.pop("image_id")]: row for row in rows}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


@pytest.fixture
def settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DescribeSettings]:
    """Settings for the server, which is asked again at once."""
    monkeypatch.setattr(retry, "BACKOFF", 0.01)

    def create(server_settings: dict[str, Any] | None = None, **others: Any) -> DescribeSettings:
        about = {"model": "m", "url": server.url, "concurrency": 4, "timeout": 5, "retries": 2} | (
            server_settings or {}
        )
        return DescribeSettings(**{"server": about, "styles": STYLES, "shard_rows": 4} | others)

    return create
