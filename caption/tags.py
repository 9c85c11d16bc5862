"""The stage `tags`: the tags of a picture, from its source and from the tagger, in one spelling under one name each.

    spelling      booru form: lower case, underscores, plain parentheses
    aliases       the canonical name
    category      the vocabulary's, else the given one
    union         what the source says, then what the tagger adds; who gave a tag first is its origin
    conflicts     a number of persons by the tagger that contradicts the source's is left out, and so is its rating
    implications  all tags that follow from a tag, with the origin `rule`
    deny list     left out

What is left out or renamed stands in `removed`, with a reason. Tags of the safety rule are never left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from caption.lookup import Lookup
from caption.normalise import NORMAL, normalise
from caption.parts import write_part, write_table
from caption.pictures import Range
from caption.vocabulary import Vocabulary, read_vocabulary
from shared.progress import console
from shared.safety import MINOR_TAGS
from shared.settings import Settings
from shared.spelling import tag_name
from shared.stages import Job, Stage


class TagsSettings(Settings):
    """What is known about tags, and which are not wanted."""

    vocabulary: Path | None = None
    """Tags with category, count and aliases, as autocomplete tools have them for Danbooru: a CSV without header of
    name, number of category, count, "alias,alias"."""
    aliases: Path | None = None
    """Further aliases, as boorus publish them: .csv, .jsonl or .parquet of antecedent_name, consequent_name, status."""
    implications: Path | None = None
    """Implications, in the same form."""
    deny: tuple[str, ...] = ()
    """Tags that are left out, in any spelling, by any of their names."""
    drop_unknown: bool = False
    """Leave out tags that `vocabulary` does not have."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.drop_unknown and self.vocabulary is None:
            raise ValueError("drop_unknown needs a vocabulary: without one every tag is unknown")
        if kept := sorted(MINOR_TAGS.intersection(map(tag_name, self.deny))):
            raise ValueError(f"deny: the safety rule must see {kept[0]!r}, it cannot be left out")
        return self


def run(job: Job[TagsSettings]) -> None:
    """Normalise the tags of every picture that is still kept, each part of the table in a process of its own."""
    for line in _vocabulary(job.settings).report():
        console.print(line, soft_wrap=True, markup=False)
    for reason, count in sorted(write_table(job, "tags", write_range).items()):
        console.print(f"  tags renamed or left out: {count:,} x {reason}", soft_wrap=True, markup=False)


def write_range(
    tables: Mapping[str, Path], deciders: Sequence[str], folder: Path, settings: TagsSettings, part: Range
) -> tuple[int, Counter[str]]:
    """Write one part of the table. Returns how many pictures it has, and how many tags are in `removed`, by reason."""
    lookup = make_lookup(settings)
    rows, removed = 0, Counter[str]()

    def batches(found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for batch in found:
            normal = normalise(batch, lookup)
            rows += len(normal)
            for reason in pc.value_counts(normal["removed"].flatten().field("reason")).to_pylist():
                removed[reason["values"]] += reason["counts"]
            yield normal

    write_part(tables, deciders, folder, part, _query(tables, part), NORMAL, batches)
    return rows, removed


def make_lookup(settings: TagsSettings) -> Lookup:
    """What becomes of tags under these settings."""
    vocabulary = _vocabulary(settings)
    return Lookup(vocabulary, frozenset(map(vocabulary.resolve, settings.deny)), settings.drop_unknown)


@lru_cache(maxsize=1)
def _vocabulary(settings: TagsSettings) -> Vocabulary:
    """The vocabulary, once for each process."""
    return read_vocabulary(settings.vocabulary, settings.aliases, settings.implications)


def _query(tables: Mapping[str, Path], part: Range) -> str:
    """SQL for the tags and ratings that were given; null where there is no tagger."""
    there, bounds = "tagger" in tables, part.bounds()
    return f"""
        SELECT image_id, merge.tags, merge.rating, {"tagger.tags, tagger.rating" if there else _NO_TAGGER}
        FROM merge SEMI JOIN survivors USING (image_id)
        {f"LEFT JOIN (FROM tagger WHERE {bounds}) AS tagger USING (image_id)" if there else ""}
        WHERE {bounds} ORDER BY image_id
    """


_NO_TAGGER = "NULL::STRUCT(name VARCHAR, category VARCHAR, confidence FLOAT)[], NULL::VARCHAR"

STAGE = Stage(settings=TagsSettings, version=1, run=run, adds=("tags", "rating"))
