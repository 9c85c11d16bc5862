"""What becomes of each tag that is given: looked up once, and then known by a number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from caption.persons import Persons, persons
from caption.vocabulary import Vocabulary
from shared.safety import MINOR_TAGS
from shared.spelling import tag_name

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REASONS = ("", "alias", "denied", "unknown", "empty", "conflict")
"""It is there; it has another name now; it is not wanted; the vocabulary does not have it; there is nothing left of it;
the source says otherwise."""

KEPT = REASONS[:2]


class Known(NamedTuple):
    """What becomes of a tag as it is given."""

    given: str
    name: str
    place: int
    """Equal where names are."""
    category: str
    reason: int
    """Place in REASONS."""
    general: bool
    evident: bool
    """Whether captions leave it out where another tag implies it."""
    persons: Persons | None
    parents: tuple[int, ...]
    """Numbers of the tags that follow from it."""


class Table:
    """The tags of a `Lookup` as columns, by number."""

    def __init__(self) -> None:
        self.given = self.names = self.categories = pa.array([], pa.string())
        self.place = self.reason = self.parents = self.parent_count = np.array([], np.int64)
        self.general = self.evident = self.counting = np.array([], np.bool_)
        self.persons: list[Persons | None] = []

    def extend(self, known: Sequence[Known]) -> None:
        """Add tags behind those that are there."""
        given, names, place, categories, reason, general, evident, persons, parents = zip(*known, strict=True)
        self.given, self.names, self.categories = (
            pa.concat_arrays([there, pa.array(words, pa.string())])
            for there, words in ((self.given, given), (self.names, names), (self.categories, categories))
        )
        self.place, self.reason = _longer(self.place, place), _longer(self.reason, reason)
        self.general, self.evident = _longer(self.general, general), _longer(self.evident, evident)
        self.counting = _longer(self.counting, [one is not None for one in persons])
        self.persons += persons
        self.parents = _longer(self.parents, list(chain.from_iterable(parents)))
        self.parent_count = _longer(self.parent_count, list(map(len, parents)))
        self.parent_start: Ints = np.cumsum(self.parent_count) - self.parent_count
        self.kept: Bools = self.reason < len(KEPT)


def _longer(column: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    return np.concatenate([column, np.array(values, column.dtype)])


@dataclass
class Lookup:
    """All tags that were given so far, by number."""

    vocabulary: Vocabulary
    denied: frozenset[str] = frozenset()
    """Canonical names. The safety rule's are never denied."""
    drop_unknown: bool = False
    known: list[Known] = field(default_factory=list)
    _table: Table = field(default_factory=Table)
    _numbers: dict[str, int] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.number("general ")  # There is always one.

    def number(self, key: str) -> int:
        """The number of a tag, given as its category, a blank, and its name."""
        found = self._numbers.get(key)
        if found is None:
            category, _, given = key.partition(" ")
            self.known.append(self._look_up(given, category))
            found = self._numbers[key] = len(self.known) - 1
        return found

    def table(self) -> Table:
        """All of them as columns."""
        if new := self.known[len(self._table.place) :]:
            self._table.extend(new)
        return self._table

    def _look_up(self, given: str, category: str) -> Known:
        name = self.vocabulary.resolve(given)
        entry = self.vocabulary.tags.get(name)
        category = entry.category if entry else category
        parents = [self.number(f"general {parent}") for parent in self.vocabulary.implied.get(name, ())]
        return Known(
            given,
            name,
            self._places.setdefault(name, len(self._places)),
            category,
            REASONS.index(self._reason(given, name)),
            category == "general",
            category == "general" and name not in MINOR_TAGS,
            persons(name),
            tuple(parent for parent in parents if REASONS[self.known[parent].reason] in KEPT),
        )

    def _reason(self, given: str, name: str) -> str:
        if not name:
            return "empty"
        if name in MINOR_TAGS or not (name in self.denied or self._unwanted(name)):
            return "" if name == tag_name(given) else "alias"
        return "denied" if name in self.denied else "unknown"

    def _unwanted(self, name: str) -> bool:
        return self.drop_unknown and name not in self.vocabulary.tags
