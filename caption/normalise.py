"""Tags of pictures under their canonical names: columns in, columns out.

Every different tag is looked up once (`Lookup`); what it becomes is then a matter of numbers, for all pictures of a
batch at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from caption.lookup import REASONS, Bools, Ints, Lookup, Table
from caption.persons import Persons, contradicts
from shared.stages import TAG

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

CONFLICT = REASONS.index("conflict")


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
    table = lookup.table()
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
    numbers = list(map(lookup.number, keys.dictionary.to_numpy(zero_copy_only=False).tolist()))
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
    order: Ints = np.argsort(row * (place.max(initial=0) + 1) + place, kind="stable")
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
