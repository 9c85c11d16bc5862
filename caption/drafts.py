"""Pictures on their way to a description: prepared for a model, tried several times, and what becomes of each.

Nothing here imports PyTorch or a client: the processes that decode pictures import it.
"""

import io
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from caption.check import Names, Problem, clean, problem
from caption.prompts import Known, fill, seed
from caption.write import one_line
from shared.corpus import Corpus
from shared.engine import decoders_named, follow_parent
from shared.images import Unreadable, decode

QUALITY = 92
"""Of the JPEGs that are shown to a model; colours are as fine as brightness."""

KEPT = 2000
"""Characters of a refused text that go to the table."""

Row = dict[str, Any]
"""Of the table `describe`."""

UNANSWERED = ("server", "garbage")
"""Errors of a row that another day may not have: the server gave no answer, or none that held a text."""


class Answer(NamedTuple):
    """What a model said."""

    text: str
    finish: str
    """Why it stopped: stop, length (more than it may say), content_filter."""


@dataclass(frozen=True)
class Frame:
    """What becomes of a picture before a model sees it."""

    corpus: Corpus
    side: int
    """Pixels that its longer side may have."""
    max_pixels: int

    def jpeg(self, item: Mapping[str, Any]) -> bytes:
        """The picture, reduced. Raises Unreadable."""
        data = self.corpus.read_picture(item["image_id"], item["locations"])
        image = decode(data, self.max_pixels, (self.side, 1)).image
        image.thumbnail((self.side, self.side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()


def _prepare(frame: Frame, item: Mapping[str, Any]) -> bytes | Problem:
    try:
        return frame.jpeg(item)
    except Unreadable as error:
        return Problem(error.reason, error.detail)


class Preparer:
    """Processes that read, decode and reduce pictures. A context manager."""

    def __init__(self, frame: Frame, workers: int) -> None:
        self.frame, self.workers = frame, workers
        self._pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent
        )

    def submit(self, item: Mapping[str, Any]) -> Future[bytes | Problem]:
        """The JPEG of a picture, or why there is none."""
        with decoders_named():
            return self._pool.submit(_prepare, self.frame, {key: item[key] for key in ("image_id", "locations")})

    def __enter__(self) -> "Preparer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Order:
    """What is wanted of every picture."""

    styles: Mapping[str, str]
    """Templates by name."""
    attempts: int
    names: Names

    def drafts(self, item: Mapping[str, Any]) -> "list[Draft]":
        """One per style, not tried yet."""
        known = Known(**{key: item[key] for key in Known.__annotations__})  # type: ignore[typeddict-item]
        return [Draft(self, item["image_id"], style, fill(text, known), known) for style, text in self.styles.items()]


@dataclass
class Draft:
    """One text about one picture, from attempt to attempt."""

    order: Order
    image_id: str
    style: str
    prompt: str
    known: Known
    attempts: int = 0
    text: str | None = None
    """The text, once it is good."""
    problem: Problem | None = None
    """What was wrong with the last one."""
    refused: str = ""
    """That text."""

    @property
    def seed(self) -> int:
        """Of the next attempt."""
        return seed(self.image_id, self.style, self.attempts)

    @property
    def done(self) -> bool:
        """It is good, or was tried often enough."""
        return self.text is not None or self.attempts >= self.order.attempts

    def take(self, answer: Answer) -> None:
        """Look at what the model said at this attempt."""
        text = clean(answer.text)
        wrong = problem(text, answer.finish, self.known, self.order.names)
        if wrong:
            self.fail(wrong, answer.text)
        else:
            self.attempts += 1
            self.text = one_line(text)

    def fail(self, wrong: Problem, text: str = "") -> None:
        """This attempt gave nothing that can be used."""
        self.attempts += 1
        self.problem, self.refused = wrong, text[:KEPT]


@dataclass
class Described:
    """A picture and what was said of it."""

    image_id: str
    drafts: Sequence[Draft] = field(default=())
    error: Problem | None = None
    """Why nothing could be said."""

    def row(self) -> Row:
        """As the table has it."""
        good = [draft for draft in self.drafts if draft.text is not None]
        bad = [(draft, draft.problem) for draft in self.drafts if draft.text is None and draft.problem]
        return {
            "image_id": self.image_id,
            "descriptions": [{"style": draft.style, "text": draft.text, "attempts": draft.attempts} for draft in good],
            "problems": [
                {"style": draft.style, "reason": wrong.reason, "detail": wrong.detail, "text": draft.refused}
                for draft, wrong in bad
            ],
            "error": self.error and self.error.reason,
            "detail": self.error and self.error.detail,
        }
