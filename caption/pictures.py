"""What the tables before `compose` know of each picture, in runs of image ids."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from caption.write import Tag, make_tag, make_text, one_line
from shared.tables import PART_ROWS

MODIFIERS = ("rating", "quality", "year")
"""Groups of what is said of a picture beside its tags."""

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
    tags = _tags(batch["tags"], frozenset(always))
    columns = (batch[name].to_pylist() for name in batch.schema.names if name != "tags")
    for own, image_id, rating, quality, year, text, descriptions, caption in zip(tags, *columns, strict=True):
        said = [make_tag(name, group) for name, group in zip((rating, quality, year), MODIFIERS, strict=True) if name]
        sentences = {item["style"]: one_line(item["text"]) for item in descriptions or ()}
        yield Picture(
            image_id,
            sorted([tag for tag in (*own, *said, make_text(text)) if tag is not None], key=attrgetter("rank")),
            sentences | {"source": one_line(caption)},
        )


def _tags(column: pa.ListArray, always: frozenset[str]) -> Iterator[list[Tag | None]]:
    """The tags of each picture. Each different one is looked at once: they are most of the work."""
    flat = column.flatten()
    keys = pc.binary_join_element_wise(flat.field("category"), flat.field("name"), " ").dictionary_encode()
    known = [
        make_tag(name, category, name in always)
        for category, _, name in (key.partition(" ") for key in keys.dictionary.to_pylist())
    ]
    tags = [known[index] for index in keys.indices.to_numpy().tolist()]
    start = 0
    for length in pc.list_value_length(column).to_pylist():
        yield tags[start : start + length]
        start += length


_SHOWN = "coalesce([tag FOR tag IN tags.tags IF list_position(tags.implied, tag.name) IS NULL], [])"
"""SQL for the tags without those that another tag of the picture says already."""


def _rating(there: Sequence[str]) -> str:
    """SQL for the rating, which is said where there is a stage for such things."""
    if "tags" in there:
        return "coalesce(tags.rating, merge.rating)"
    return "merge.rating" if "quality" in there else "NULL"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
