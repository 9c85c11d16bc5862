"""A server that speaks the OpenAI chat API (vLLM, SGLang, llama.cpp, a service): `{url}/chat/completions`.

What goes wrong for a while is tried again; what is wrong for good is about one picture, or ends the run.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Annotated, Any, Self

import httpx
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from caption.check import Problem
from caption.drafts import Answer
from caption.retry import Patience, backoff, retry_after
from shared.errors import UserError
from shared.progress import console
from shared.settings import Settings

CONNECT = 30.0
"""Seconds to wait for a connection."""
PER_PICTURE = {400, 413, 415, 422, 451}
"""The server does not want this picture, or this question about it."""
WAIT = {408, 409, 425, 429, *range(500, 600)}
"""There may be an answer later. With 429, and with a time to wait, the server is busy; else something went wrong."""


def _url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"is no address ({error}); it is like http://localhost:8000/v1") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("is no address; it is like http://localhost:8000/v1")
    return url.rstrip("/").removesuffix("/chat/completions")


class ServerSettings(Settings):
    """A server, and how it is asked. Of these only `model`, `max_tokens` and `temperature` name the table: with another
    address or more requests at once, a run goes on where it was."""

    HOW = frozenset({"url", "concurrency", "timeout", "retries", "patience", "api_key_env"})

    model: str = Field(min_length=1)
    """As the server calls it."""
    url: Annotated[str, AfterValidator(_url)] = "http://localhost:8000/v1"
    """Where the API begins."""
    concurrency: PositiveInt = 64
    """Requests under way at once."""
    timeout: PositiveFloat = 300.0
    """Seconds that an answer may take."""
    retries: NonNegativeInt = 6
    """How often a request is sent again where there was no answer."""
    patience: NonNegativeFloat = 3600.0
    """Seconds that a request waits in all for a server that says that it has too much to do. This uses up no retry."""
    max_tokens: PositiveInt = 512
    """Tokens that an answer may have."""
    temperature: NonNegativeFloat = 0.6
    """0 always takes the most probable word; an attempt at the same text would then fail the same way."""
    api_key_env: str | None = None
    """The environment variable that holds the key, if the server wants one."""


class Garbage(Exception):  # noqa: N818 - what it is
    """An answer in which there is no text."""


class Silent(Exception):  # noqa: N818 - a state of the server
    """There was no answer, for good; `problem` says why: server, or refused where the request itself is not wanted."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class _Again(Exception):  # noqa: N818 - what to do
    """There was no answer, but there may be one later."""

    def __init__(self, problem: Problem, refused: bool = False) -> None:
        super().__init__(problem.detail)
        self.problem, self.refused = problem, refused


class _Busy(_Again):
    """The server has too much to do: there may be an answer after `seconds`, if it said so."""

    def __init__(self, problem: Problem, seconds: float | None) -> None:
        super().__init__(problem)
        self.seconds = seconds


class Client:
    """Asks the server, never more than `concurrency` times at once. An asynchronous context manager."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises UserError where the key is not in the environment."""
        self.settings = settings
        self._address = f"{settings.url}/chat/completions"
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._not_before, self._told = 0.0, False
        self._connections = httpx.AsyncClient(
            headers=_headers(settings.api_key_env),
            timeout=httpx.Timeout(settings.timeout, connect=min(CONNECT, settings.timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency),
        )

    async def ask(self, prompt: str, jpeg: str, seed: int) -> Answer:
        """What the model says to a prompt about a picture, a JPEG in base64.

        Raises Garbage, Silent where there is no answer to this request, UserError where there is none to any.
        """
        body = self._body(prompt, jpeg, seed)
        failed, patience = 0, Patience(self.settings.patience)
        while True:
            try:
                return await self._once(body)
            except _Busy as error:
                if not patience.lasts(error.seconds):
                    detail = f"{error.problem.detail} (it was busy for longer than describe.server.patience)"
                    raise Silent(Problem("server", detail)) from None
                self._tell(error)
                await self._wait(error.seconds, patience.times)
            except _Again as error:
                failed += 1
                if failed > self.settings.retries:
                    raise self._given_up(error) from None
                await self._wait(None, failed)

    def _tell(self, error: _Busy) -> None:
        if not self._told:
            console.print(f"the server is busy and is waited for: {error.problem.detail}", soft_wrap=True, markup=False)
        self._told = True

    def _given_up(self, last: _Again) -> Exception:
        if last.refused:
            return UserError(f"{self._address}: {last.problem.detail}; {RESUME}")
        return Silent(last.problem)

    async def _wait(self, seconds: float | None, times: int) -> None:
        if seconds is not None:  # It is the server that is busy, whichever request it told so.
            self._not_before = max(self._not_before, time.monotonic() + seconds)
        else:
            await asyncio.sleep(backoff(times))

    async def _once(self, body: Mapping[str, Any]) -> Answer:
        async with self._slots:
            while (left := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(left)
            try:
                async with asyncio.timeout(self.settings.timeout):
                    response = await self._connections.post(self._address, json=body)
            except httpx.ConnectError as error:
                raise _Again(Problem("server", f"no connection ({error})"), refused=True) from None
            except (TimeoutError, httpx.TimeoutException):
                detail = f"no answer within {self.settings.timeout:g} seconds"
                raise _Again(Problem("server", detail)) from None
            except httpx.RequestError as error:
                raise _Again(Problem("server", f"{type(error).__name__}: {error}")) from None
        return self._answer(response)

    def _answer(self, response: httpx.Response) -> Answer:
        status = response.status_code
        if status == 200:
            return _read(response)
        problem = Problem("server", f"HTTP {status}: {_excerpt(response)}")
        seconds = retry_after(response.headers.get("Retry-After"))
        if status == 429 or (status in WAIT and seconds is not None):
            raise _Busy(problem, seconds)
        if status in WAIT:
            raise _Again(problem)
        if status in PER_PICTURE:
            raise Silent(Problem("refused", problem.detail))
        hint = _HINTS.get(status, "is this the address of an OpenAI-compatible API, and the name of its model?")
        raise UserError(f"{self._address}: {problem.detail}; {hint} {RESUME}")

    def _body(self, prompt: str, jpeg: str, seed: int) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}}
        return {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": [picture, {"type": "text", "text": prompt}]}],
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
            "seed": seed,
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.aclose()


RESUME = "Finished shards are kept; start the command again to go on."
_HINTS = {
    401: "set describe.server.api_key_env to the environment variable that holds the key.",
    403: "the key (describe.server.api_key_env) does not allow this.",
}


def _headers(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"describe.server.api_key_env = {variable!r}: the environment has no such variable")
    return {"Authorization": f"Bearer {key}"}


def _read(response: httpx.Response) -> Answer:
    """Raises Garbage where it is none."""
    try:
        choice = response.json()["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Garbage(f"no answer of the chat API: {_excerpt(response)}") from None
    if not isinstance(text, str) or not (text.strip() or finish == "content_filter"):
        raise Garbage(f"an answer without a text: {_excerpt(response)}")
    return Answer(text, str(finish or "stop"))


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:200]
