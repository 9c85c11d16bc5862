"""Pictures on their way through a server.

As many requests are under way as the server takes at once, whatever shards their pictures belong to; pictures are
decoded ahead, in processes.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from caption.check import Problem
from caption.drafts import UNANSWERED, Described, Draft, Order, Preparer, Row
from caption.server import RESUME, Client, Garbage, ServerSettings, Silent
from shared.engine import decoders_named
from shared.errors import UserError
from shared.worklist import Shard

GONE = 20
"""So many pictures in a row without an answer are the fault of the server."""

Write = Callable[[Shard, Sequence[Row]], None]


def describe(
    shards: Sequence[Shard], settings: ServerSettings, order: Order, preparer: Preparer, write: Write
) -> Iterator[Shard]:
    """Describe the pictures of shards; yields each shard that is written, in the order in which they are finished.

    Of a shard that was written before, only what had no answer is asked for.

    Raises UserError where the server refuses everything, or is gone.
    """
    with asyncio.Runner() as runner:
        written = _Window(settings, order, preparer, write).run(shards)
        try:
            while (shard := runner.run(_next(written))) is not None:
                yield shard
        finally:
            runner.run(_close(written))


async def _next(shards: AsyncIterator[Shard]) -> Shard | None:
    return await anext(shards, None)


async def _close(shards: AsyncGenerator[Shard, None]) -> None:
    await shards.aclose()


@dataclass(eq=False)
class _Open:
    """A shard whose pictures are under way."""

    shard: Shard
    rows: list[Row | None]
    left: int

    def described(self) -> list[Row]:
        """The rows, once there are all."""
        return [row for row in self.rows if row is not None]

    def silent(self) -> bool:
        """Whether the server did not answer for one of them."""
        return any(row["error"] in UNANSWERED for row in self.described())


def _opened(shards: Sequence[Shard]) -> Iterator[tuple[_Open, int, dict[str, Any]]]:
    """Every picture that has no answer yet, with its shard and its row."""
    for shard in shards:
        items, known = shard.items().to_pylist(), _answered(shard)
        rows = [known.get(item["image_id"]) for item in items]
        opened = _Open(shard, rows, rows.count(None))
        for row, item in enumerate(items):
            if rows[row] is None:
                yield opened, row, item


def _answered(shard: Shard) -> dict[str, Row]:
    """What an earlier run has written, by image id, but for what had no answer."""
    rows = pq.read_table(shard.part).to_pylist() if shard.part.exists() else []
    return {row["image_id"]: row for row in rows if row["error"] not in UNANSWERED}


class _Window:
    """Pictures under way: as many as there may be requests, and some that are decoded for the next ones."""

    def __init__(self, settings: ServerSettings, order: Order, preparer: Preparer, write: Write) -> None:
        self._settings, self._order, self._preparer, self._write = settings, order, preparer, write
        self._health = _Health(settings.url)
        self._size = settings.concurrency + 2 * preparer.workers
        self._tasks: set[asyncio.Task[_Open]] = set()
        self._complete: list[_Open] = []

    async def run(self, shards: Sequence[Shard]) -> AsyncGenerator[Shard, None]:
        """Yields each shard that is written."""
        async with Client(self._settings) as client:
            try:
                for opened, row, item in _opened(shards):
                    self._tasks.add(asyncio.create_task(self._picture(client, opened, row, item)))
                    while len(self._tasks) >= self._size:
                        for shard in await self._finished():
                            yield shard
                while self._tasks:
                    for shard in await self._finished():
                        yield shard
                for shard in self._written(everything=True):
                    yield shard
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finished(self) -> list[Shard]:
        """Wait until a picture is done; the shards that are written."""
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            opened = task.result()
            opened.left -= 1
            if not opened.left:
                self._complete.append(opened)
        return self._written()

    def _written(self, everything: bool = False) -> list[Shard]:
        """Write the shards that are complete.

        While pictures fail, those with a failure wait: should the server be gone, they are asked for again another day.
        """
        ready = [one for one in self._complete if everything or not self._health.failed or not one.silent()]
        for one in ready:
            self._write(one.shard, one.described())
            self._complete.remove(one)
        return [one.shard for one in ready]

    async def _picture(self, client: Client, opened: _Open, row: int, item: Mapping[str, Any]) -> _Open:
        with decoders_named():
            jpeg = await asyncio.wrap_future(self._preparer.submit(item))
        if isinstance(jpeg, Problem):
            found = Described(item["image_id"], error=jpeg)
        else:
            found = await self._described(client, item, base64.b64encode(jpeg).decode())
        opened.rows[row] = found.row()
        return opened

    async def _described(self, client: Client, item: Mapping[str, Any], jpeg: str) -> Described:
        drafts = self._order.drafts(item)
        ends = await asyncio.gather(*(self._draft(client, draft, jpeg) for draft in drafts), return_exceptions=True)
        error: Problem | None = None
        for end in ends:
            if isinstance(end, Silent):
                error = end.problem
            elif end is not None:
                raise end
        error = error or _garbage(drafts)
        if error:
            self._health.bad(error)
        return Described(item["image_id"], drafts, error)

    async def _draft(self, client: Client, draft: Draft, jpeg: str) -> None:
        while not draft.done:
            try:
                answer = await client.ask(draft.prompt, jpeg, draft.seed)
            except Garbage as error:
                draft.fail(Problem("garbage", str(error)))
            else:
                self._health.good()
                draft.take(answer)


def _garbage(drafts: Sequence[Draft]) -> Problem | None:
    """What was wrong, where no answer held a text."""
    if any(draft.text is not None or draft.problem is None or draft.problem.reason != "garbage" for draft in drafts):
        return None
    return drafts[0].problem


@dataclass
class _Health:
    """Tells pictures that are wrong from a server that is."""

    url: str
    failed: int = 0
    """Pictures in a row without an answer."""
    worked: bool = False

    def good(self) -> None:
        """There was an answer."""
        self.failed, self.worked = 0, True

    def bad(self, problem: Problem) -> None:
        """There was none for a picture. Raises UserError where there is none for any.

        Requests that are refused one by one count only until the first is answered.
        """
        if problem.reason == "refused" and self.worked:
            return
        self.failed += 1
        if self.failed >= GONE:
            raise UserError(
                f"describe.server.url = {self.url}: {GONE} pictures in a row had no answer, "
                f"the last one: {problem.detail}; {RESUME}"
            )
