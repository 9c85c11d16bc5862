"""The text encoder reads so many tokens of a caption and no more: what is too long is shortened here, where it is known
what matters.

Whole tags go, from the least important end: general tags (the last first), then sentences but the first, year, artist,
copyright. Who is there, characters, rating, quality and the text in the picture stay.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from caption.write import Tag, write
from shared.errors import UserError

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of texts, with everything that the encoder adds."""

FIRST_TO_GO, LATER = ("general",), ("year", "artist", "copyright")

SENTENCE = re.compile(r"(?<=[.!?]) ")


class Parts(NamedTuple):
    """What a caption is made of."""

    variant: str
    order: str | None
    tags: list[Tag]
    sentences: str

    def text(self) -> str:
        """The caption."""
        return write(self.order, self.tags, self.sentences)


@dataclass(frozen=True, slots=True)
class Shortened:
    """A caption that was too long."""

    text: str
    tokens: int
    """Of the whole one."""
    left: int
    """Of the shortened one: more than the limit if nothing else could go."""
    dropped: list[str]
    """Tags and sentences, the first to go first."""


def shorten(parts: Parts, tokens: int, limit: int, count: Count) -> Shortened:
    """Drop as little as makes a caption of so many tokens fit."""
    order = _expendable(parts)

    def without(number: int) -> str:
        gone = set(order[:number])
        tags = [tag for at, tag in enumerate(parts.tags) if ("tag", at) not in gone]
        pieces = [piece for at, piece in enumerate(_sentences(parts)) if ("sentence", at) not in gone]
        return write(parts.order, tags, " ".join(pieces))

    low, high = 0, len(order)  # Without `high` it fits, or there is nothing else to drop.
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count([without(middle)])[0] <= limit else (middle, high)
    text = without(high)
    dropped = [parts.tags[at].text if kind == "tag" else _sentences(parts)[at] for kind, at in order[:high]]
    return Shortened(text, tokens, count([text])[0], dropped)


def _expendable(parts: Parts) -> list[tuple[str, int]]:
    """What may be dropped, the least important first. Something always stays."""

    def tags(group: str) -> list[tuple[str, int]]:
        places = [at for at, tag in enumerate(parts.tags) if tag.group == group and not tag.fixed]
        return [("tag", at) for at in reversed(places)]

    sentences = [("sentence", at) for at in range(len(_sentences(parts)) - 1, 0, -1)]
    found = [piece for group in FIRST_TO_GO for piece in tags(group)] + sentences
    found += [piece for group in LATER for piece in tags(group)]
    return found[: len(parts.tags) + len(_sentences(parts)) - 1]


def _sentences(parts: Parts) -> list[str]:
    return SENTENCE.split(parts.sentences) if parts.sentences else []


@lru_cache(maxsize=1)
def counter(tokenizer: str, prefix: str) -> Count:
    """Counts tokens as `tokenizer`, a folder or a name of the hub, cuts them; `prefix` is put before each text."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"compose.tokenizer = {tokenizer!r}: neither a folder nor a name of the hub ({reason})"
        ) from None

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in found([prefix + text for text in texts])["input_ids"]]

    return count
