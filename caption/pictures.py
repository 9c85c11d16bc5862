"""What the tables before `compose` know of each picture, in runs of image ids."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from caption.variants import GROUPS
from caption.write import Tag, make_tag, make_text, one_line
from shared.tables import PART_ROWS

Ints = NDArray[np.int64]

SAID = {"rating": "rating", "quality_tag": "quality", "year_tag": "year", "text": "text"}
"""Columns of what is said of a picture beside its tags, and the groups of tags that they become."""

OPTIONAL = ("tags", "quality", "ocr", "describe")
"""Tables that are used where they are there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a picture."""

    image_id: str
    tags: list[Tag]
    """In the order of their groups, with what is said beside them: rating, quality, year, text."""
    sentences: Mapping[str, str]
    """By style, descriptions first; `source` is what came with the picture."""

    def sentence(self, wanted: bool | str) -> str:
        """The sentences a variant asks for, or nothing."""
        if isinstance(wanted, str):
            return self.sentences.get(wanted, "")
        return next(filter(None, self.sentences.values()), "") if wanted else ""


@dataclass(frozen=True)
class Range:
    """The pictures of one part of a table: from an id up to another, None where there is no bound."""

    number: int
    start: str | None
    end: str | None

    def query(self, tables: Mapping[str, Path]) -> str:
        """SQL for what is known of them; what no table says is null."""
        there = [name for name in OPTIONAL if name in tables]
        joins = "".join(f' LEFT JOIN "{name}" USING (image_id)' for name in there)
        return f"""
            SELECT
                image_id,
                {_SHOWN if "tags" in there else "merge.tags"} AS tags,
                {_rating(there)} AS rating,
                {"quality_tag, year_tag" if "quality" in there else "NULL AS quality_tag, NULL AS year_tag"},
                {"ocr.text" if "ocr" in there else "NULL"} AS text,
                {"descriptions" if "describe" in there else "[]"} AS descriptions,
                merge.caption AS caption
            FROM merge SEMI JOIN survivors USING (image_id){joins}
            WHERE {self.bounds()} ORDER BY image_id
        """

    def bounds(self) -> str:
        """SQL that is true of them alone."""
        bounds = [f"image_id {sign} {_quoted(end)}" for sign, end in ((">=", self.start), ("<", self.end)) if end]
        return " AND ".join(bounds) or "true"


def ranges(connection: duckdb.DuckDBPyConnection) -> tuple[int, list[Range]]:
    """How many pictures are still kept, and the parts they are cut into."""
    connection.execute(
        "CREATE TEMP TABLE kept AS SELECT image_id, row_number() OVER (ORDER BY image_id) - 1 AS row "
        "FROM merge SEMI JOIN survivors USING (image_id)"
    )
    total = connection.sql("SELECT count(*) FROM kept").fetchall()[0][0]
    starts = connection.sql(f"SELECT image_id FROM kept WHERE row > 0 AND row % {PART_ROWS} = 0 ORDER BY row")
    bounds = [None, *(start for (start,) in starts.fetchall()), None]
    return total, [Range(number, *ends) for number, ends in enumerate(pairwise(bounds))]


def pictures(batch: pa.RecordBatch, always: Sequence[str]) -> Iterator[Picture]:
    """The pictures of a batch of `Range.query`; the tags `always` are never dropped."""
    image_ids, captions = _texts(batch["image_id"]), _texts(batch["caption"])
    descriptions, tags = batch["descriptions"].to_pylist(), _tags(batch, frozenset(always))
    for image_id, caption, said, own in zip(image_ids, captions, descriptions, tags, strict=True):
        sentences = {item["style"]: one_line(item["text"]) for item in said or ()}
        yield Picture(image_id, own, sentences | {"source": one_line(caption)})


def _texts(column: pa.StringArray) -> list[Any]:
    """Texts as Python has them, many times faster than `to_pylist`."""
    texts: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return texts


def _tags(batch: pa.RecordBatch, always: frozenset[str]) -> Iterator[list[Tag]]:
    """The tags of each picture with what is said beside them, in the order of their groups.

    Each different one is looked at once; the rest is a matter of numbers, for all pictures of the batch at a time.
    """
    flat, lengths = batch["tags"].flatten(), pc.fill_null(pc.list_value_length(batch["tags"]), 0).to_numpy()
    keys = pc.binary_join_element_wise(flat.field("category"), flat.field("name"), " ")
    makers: list[Callable[[str], Tag | None]] = [partial(_own_tag, always=always)]
    columns, rows = [keys], [np.repeat(np.arange(len(batch)), lengths)]
    for name, group in SAID.items():
        makers.append(make_text if group == "text" else partial(make_tag, category=group))
        columns.append(batch[name].drop_null())
        rows.append(np.flatnonzero(batch[name].is_valid()))

    known: list[Tag | None] = []
    numbers = []
    for make, column in zip(makers, columns, strict=True):
        encoded = column.dictionary_encode()
        numbers.append(encoded.indices.to_numpy() + len(known))
        known += map(make, _texts(encoded.dictionary))
    return _by_row(len(batch), known, np.concatenate(numbers), np.concatenate(rows))


def _own_tag(key: str, always: frozenset[str]) -> Tag | None:
    category, _, name = key.partition(" ")
    return make_tag(name, category, name in always)


def _by_row(rows: int, known: Sequence[Tag | None], number: Ints, row: Ints) -> Iterator[list[Tag]]:
    """The tags of each row in the order of their groups, those of a group as they are given."""
    rank = np.array([-1 if tag is None else tag.rank for tag in known], np.int64)[number]
    there = rank >= 0
    order = np.argsort(row[there] * len(GROUPS) + rank[there], kind="stable")
    found: list[Any] = list(map(known.__getitem__, number[there][order].tolist()))
    for start, end in pairwise([0, *np.cumsum(np.bincount(row[there], minlength=rows)).tolist()]):
        yield found[start:end]


_SHOWN = "coalesce([tag FOR tag IN tags.tags IF list_position(tags.implied, tag.name) IS NULL], [])"
"""SQL for the tags without those that another tag of the picture says already."""


def _rating(there: Sequence[str]) -> str:
    """SQL for the rating, which is said where there is a stage for such things."""
    if "tags" in there:
        return "coalesce(tags.rating, merge.rating)"
    return "merge.rating" if "quality" in there else "NULL"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
