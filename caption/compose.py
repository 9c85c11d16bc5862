"""The stage `compose`: tags and texts become caption variants. Training mixes the variants of a picture.

    tags        1girl, solo, hatsune miku, vocaloid, long hair, smile, artist name
    text        A girl with long hair smiles.
    tags_text   1girl, solo, ..., artist name. A girl with long hair smiles.

Behind the stage `quality` the tags are joined by what else Illustrious says of a picture, its rating, quality and year:

    tags        1girl, solo, hatsune miku, vocaloid, general, long hair, smile, artist name, best quality, newest

A variant needs what it is made of: a picture without tags has no `tags`, one without words an empty list.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from shared.settings import Settings
from shared.stages import CAPTION, Job, Stage
from shared.tables import read, write_parts

CAPTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("captions", pa.list_(CAPTION), nullable=False),
    ]
)

COUNT = re.compile(r"(\d+\+?|multiple_)(girl|boy|other)s?|solo|no_humans")
"""Tags that say who is there. They come first."""

ORDER = ("character", "copyright", "rating", "general", "artist", "quality", "year")
"""Categories in the order of Illustrious (arXiv 2409.19946); `meta` (highres, commentary) is not in the picture."""

MODIFIERS = {"rating": "rating", "quality_tag": "quality", "year_tag": "year"}
"""Columns that hold what is said of a picture beside its tags, with the categories of that."""

KAOMOJI = frozenset(
    {"0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^"}
    | {"o_o", "u_u", "x_x", "|_|", "||_||"}
)
"""Tags in which the underscore is a mouth, as in the WD taggers' own scripts."""


class ComposeSettings(Settings):
    """Which variants are written."""

    variants: tuple[Literal["tags", "text", "tags_text"], ...] = ("tags", "text", "tags_text")


def compose(
    tags: Sequence[Mapping[str, str]],
    text: str | None,
    variants: Sequence[str],
    modifiers: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """The caption variants of a picture, in the order of `variants`. Modifiers stand beside tags only."""
    names = ordered([*tags, *modifiers]) if ordered(tags) else []
    line = ", ".join(spell(name) for name in names)
    sentence = " ".join((text or "").split())
    texts = {
        "tags": line,
        "text": sentence,
        "tags_text": f"{line}. {sentence}" if line and sentence else "",
    }
    return [{"variant": name, "text": texts[name]} for name in variants if texts[name]]


def ordered(tags: Sequence[Mapping[str, str]]) -> list[str]:
    """Names in the order of Illustrious: person count, then by category, within each as they are given."""
    counts = [tag["name"] for tag in tags if COUNT.fullmatch(tag["name"])]
    rest = [
        tag["name"]
        for category in ORDER
        for tag in tags
        if tag["category"] == category and not COUNT.fullmatch(tag["name"])
    ]
    return counts + rest


def spell(name: str) -> str:
    """A tag as people write it: blanks for underscores."""
    return name if name in KAOMOJI else name.replace("_", " ")


def modifiers_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is said of a picture beside its tags, in the form of tags."""
    return [
        {"name": row[column], "category": category, "origin": "rule"}
        for column, category in MODIFIERS.items()
        if row.get(column) is not None
    ]


def run(job: Job[ComposeSettings]) -> None:
    """Compose the captions of every picture that is still kept."""
    columns, table = ["image_id", "tags", "caption"], "merge"
    if "quality" in job.tables:
        columns, table = [*columns, *MODIFIERS], "merge JOIN quality USING (image_id)"
    with job.connect() as connection:
        pictures = read(
            connection,
            f"SELECT {', '.join(columns)} FROM {table} SEMI JOIN survivors USING (image_id) ORDER BY image_id",
        )
        write_parts(_composed(pictures, job.settings.variants), job.folder, CAPTIONS)


def _composed(pictures: pa.RecordBatchReader, variants: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for batch in pictures:
        rows: list[dict[str, Any]] = [
            {
                "image_id": row["image_id"],
                "captions": compose(row["tags"], row["caption"], variants, modifiers_of(row)),
            }
            for row in batch.to_pylist()
        ]
        yield pa.RecordBatch.from_pylist(rows, CAPTIONS)


STAGE = Stage(settings=ComposeSettings, version=1, run=run, adds=("captions",))
