"""Tags of pictures under their canonical names: columns in, columns out.

Every different tag is looked up once (`Lookup`); what it becomes is then a matter of numbers, for all pictures of a
batch at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from caption.persons import Persons, contradicts, persons
from caption.vocabulary import Vocabulary
from shared.safety import MINOR_TAGS
from shared.spelling import tag_name
from shared.stages import TAG

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REMOVED = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A tag that was given and is not there under that name. `category` is `rating` for a rating of the tagger; `reason` is
one of REASONS."""

NORMAL = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("tags", pa.list_(TAG), nullable=False),
        pa.field("rating", pa.string()),
        pa.field("implied", pa.list_(pa.string()), nullable=False),
        pa.field("removed", pa.list_(REMOVED), nullable=False),
    ]
)
"""`implied` names the general tags that another tag of the picture says already: captions leave them out."""

ORIGINS = ("source", "tagger", "rule")

REASONS = ("", "alias", "denied", "unknown", "empty", "conflict")
"""It is there; it has another name now; it is not wanted; the vocabulary does not have it; there is nothing left of it;
the source says otherwise."""

KEPT, CONFLICT = REASONS[:2], REASONS.index("conflict")


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


@dataclass
class Lookup:
    """All tags that were given so far, by number."""

    vocabulary: Vocabulary
    denied: frozenset[str] = frozenset()
    """Canonical names. The safety rule's are never denied."""
    drop_unknown: bool = False
    known: list[Known] = field(default_factory=list)
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


class Table:
    """The tags of a `Lookup` as columns, by number."""

    def __init__(self, known: Sequence[Known]) -> None:
        given, names, place, categories, reason, general, evident, persons, parents = zip(*known, strict=True)
        self.given, self.names, self.categories = (pa.array(words, pa.string()) for words in (given, names, categories))
        self.place: Ints = np.array(place, np.int64)
        self.reason: Ints = np.array(reason, np.int64)
        self.kept: Bools = self.reason < len(KEPT)
        self.general: Bools = np.array(general)
        self.evident: Bools = np.array(evident)
        self.counting: Bools = np.array([one is not None for one in persons])
        self.persons: Sequence[Persons] = persons
        self.parents: Ints = np.array(list(chain.from_iterable(parents)), np.int64)
        self.parent_count: Ints = np.array(list(map(len, parents)), np.int64)
        self.parent_start: Ints = np.cumsum(self.parent_count) - self.parent_count


@dataclass
class Given:
    """Tags, each with the row of its picture: (n,) each."""

    row: Ints
    number: Ints
    origin: Ints
    confidence: NDArray[np.float32]
    """NaN where there is none."""

    def __getitem__(self, places: Ints | Bools) -> "Given":
        return Given(self.row[places], self.number[places], self.origin[places], self.confidence[places])

    def __add__(self, other: "Given") -> "Given":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Given(*(np.concatenate(pair) for pair in pairs))


def normalise(batch: pa.RecordBatch, lookup: Lookup) -> pa.RecordBatch:
    """Rows of NORMAL for rows of image_id, the source's tags and rating, the tagger's tags and rating."""
    image_ids, source, rating, tagger, guess = batch.columns
    given = _given(source, 0, lookup) + _given(tagger, 1, lookup)
    table = Table(lookup.known)
    against = _conflicts(given, table)
    valid = given[~against]
    tags = _united(valid[table.kept[valid.number]] + _implied(valid, table), table)
    implied = _implied(tags, table)  # By what is there: what a denied tag implies is not evident from it.
    evident = implied[table.evident[implied.number]]
    columns = [
        image_ids,
        _lists(len(batch), tags.row, _structs(tags, table)),
        pc.coalesce(rating, guess),
        _evident(len(batch), evident, table),
        _removed(given, np.where(against, CONFLICT, table.reason[given.number]), table, rating, guess),
    ]
    return pa.record_batch(columns, schema=NORMAL)


def _given(column: pa.ListArray, origin: int, lookup: Lookup) -> Given:
    """The tags of a column. Each different one is looked at once."""
    flat = column.flatten()
    keys = pc.binary_join_element_wise(flat.field("category"), flat.field("name"), " ").dictionary_encode()
    numbers = [lookup.number(key) for key in keys.dictionary.to_pylist()]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return Given(
        np.repeat(np.arange(len(column)), lengths),
        np.array(numbers, np.int64)[keys.indices.to_numpy()],
        np.full(len(flat), origin),
        flat.field("confidence").to_numpy(zero_copy_only=False).astype(np.float32),
    )


def _conflicts(given: Given, table: Table) -> Bools:
    """Whether a tag of the tagger counts persons otherwise than the source does."""
    against = np.zeros(len(given.row), bool)
    places = np.flatnonzero(table.counting[given.number])
    said: dict[int, list[Persons]] = {}
    for place, row, number, origin in zip(
        places.tolist(),
        given.row[places].tolist(),
        given.number[places].tolist(),
        given.origin[places].tolist(),
        strict=True,
    ):
        if origin == 0:
            said.setdefault(row, []).append(table.persons[number])
        elif row in said:
            against[place] = contradicts(table.persons[number], said[row])
    return against


def _implied(given: Given, table: Table) -> Given:
    """All that follows from tags."""
    children = np.flatnonzero(table.parent_count[given.number])
    numbers = given.number[children]
    counts = table.parent_count[numbers]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    parents = table.parents[np.repeat(table.parent_start[numbers], counts) + inside]
    row = np.repeat(given.row[children], counts)
    nothing = np.full(len(row), np.nan, np.float32)
    return Given(row, parents, np.full(len(row), 2), nothing)


def _united(given: Given, table: Table) -> Given:
    """Each name of a picture once, in the order given. Of its categories the first counts that is not general."""
    key = given.row * len(table.place) + table.place[given.number]
    order = np.argsort(key * 2 + table.general[given.number], kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    first = np.minimum.reduceat(order, starts) if len(starts) else starts
    united = given[first]
    united.number = given.number[order[starts]]
    return united[_in_rows(united.row, first)]


def _in_rows(row: Ints, place: Ints) -> Ints:
    """Puts tags in the order of their pictures, those of a picture by their place."""
    order: Ints = np.lexsort((place, row))
    return order


def _evident(rows: int, implied: Given, table: Table) -> pa.ListArray:
    """The column `implied`."""
    key = implied.row * len(table.place) + table.place[implied.number]
    _, first = np.unique(key, return_index=True)
    found = implied[first][_in_rows(implied.row[first], first)]
    return _lists(rows, found.row, table.names.take(pa.array(found.number)))


def _structs(given: Given, table: Table) -> pa.StructArray:
    columns = [
        table.names.take(pa.array(given.number)),
        table.categories.take(pa.array(given.number)),
        _words(ORIGINS, given.origin),
        pa.array(given.confidence, from_pandas=True),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(TAG))


def _removed(given: Given, reason: Ints, table: Table, rating: pa.Array, guess: pa.Array) -> pa.ListArray:
    """The column `removed`."""
    gone = given[reason > 0]
    numbers = pa.array(gone.number)
    differ = pc.fill_null(pc.not_equal(rating, guess), False)
    rows = np.flatnonzero(differ.to_numpy(zero_copy_only=False))
    ratings = [
        guess.filter(differ),
        *(pa.array([word] * len(rows), pa.string()) for word in ("rating", "tagger", "conflict")),
    ]
    tags = [table.given.take(numbers), table.categories.take(numbers), _words(ORIGINS, gone.origin)]
    tags.append(_words(REASONS, reason[reason > 0]))
    columns = [pa.concat_arrays(pair) for pair in zip(tags, ratings, strict=True)]
    row = np.concatenate([gone.row, rows])
    order = np.argsort(row, kind="stable")
    return _lists(
        len(rating), row[order], pa.StructArray.from_arrays(columns, fields=list(REMOVED)).take(pa.array(order))
    )


def _words(words: Iterable[str], numbers: Ints) -> pa.Array:
    return pa.array(list(words), pa.string()).take(pa.array(numbers))


def _lists(rows: int, row: Ints, values: pa.Array) -> pa.ListArray:
    """A column of lists of values, each with its row; rows ascend."""
    ends = np.cumsum(np.bincount(row, minlength=rows))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), values)
