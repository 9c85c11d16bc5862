"""The stage `describe`: what a picture shows, in sentences, by a model that looks at it and knows its tags.

Texts of several styles per picture, each checked (see `check`), and asked for again where it fails.
"""

from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, PositiveInt, StringConstraints, model_validator

from caption.check import Names
from caption.drafts import UNANSWERED, Frame, Order, Preparer, Row
from caption.local import LocalSettings
from caption.prompts import STYLES, check_template
from caption.server import ServerSettings
from shared.corpus import Corpus
from shared.database import open_database
from shared.errors import UserError
from shared.files import atomic_file
from shared.fingerprint import fingerprint
from shared.images import MAX_PIXELS
from shared.progress import console
from shared.settings import Settings
from shared.stages import PICTURES, Job, Stage, sql
from shared.worklist import Shard, WorkList, finish

DESCRIBE = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field(
            "descriptions",
            pa.list_(pa.struct([("style", pa.string()), ("text", pa.string()), ("attempts", pa.int32())])),
            nullable=False,
        ),
        pa.field(
            "problems",
            pa.list_(pa.struct([(name, pa.string()) for name in ("style", "reason", "detail", "text")])),
            nullable=False,
        ),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`descriptions` are those that passed, in the order of the styles; `problems` say what was wrong with the last attempt
at each other one. `error` is set where a picture could not be shown to the model, or the model gave no answer."""

Style = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]
Template = Annotated[str, AfterValidator(check_template)]


class DescribeSettings(Settings):
    """Who describes the pictures, and how."""

    server: ServerSettings | None = None
    """A model behind the OpenAI chat API. Give this or `local`."""
    local: LocalSettings | None = None
    """A model on this machine."""
    styles: dict[Style, Template] = Field(default=dict(STYLES), min_length=1)
    """What is asked for each text, by the name of the style: see `prompts`."""
    attempts: PositiveInt = 3
    """How often a text is asked for until one is good."""
    side: PositiveInt = 1024
    """Pixels: a picture whose longer side has more is reduced."""
    max_pixels: PositiveInt = MAX_PIXELS
    """As in `ingest`."""
    shard_rows: PositiveInt = 256
    """Pictures per shard, the unit of resume."""

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if (self.server is None) == (self.local is None):
            raise ValueError("give either server or local")
        if "source" in self.styles:
            raise ValueError("a style must not be called source: `compose` calls so what came with a picture")
        return self


def run(job: Job[DescribeSettings]) -> str:
    """Describe what is new, and what had no answer; returns a digest of the pictures and of what was said."""
    work = WorkList(job.folder, ("image_id",), job.settings.shard_rows)
    with job.connect() as connection:
        digest = work.follow(connection, items(job.tables))
    shards = work.shards()
    work.allow_empty(DESCRIBE)
    missing, again = not all(shard.part.exists() for shard in shards), _unanswered(job.folder)
    if missing:
        _describe(job, shards, again)
    elif again:
        _try(job, shards, again)
    if missing or again:
        again = _unanswered(job.folder)
    left = sum(again.values())
    if left:
        console.print(f"  {left:,} pictures had no answer (error = {' or '.join(UNANSWERED)}); the next run asks again")
    return fingerprint([digest, [shard.part.stat().st_size for shard in shards], left])


def _unanswered(folder: Path) -> dict[Path, int]:
    """How many pictures had no answer, by the part in which they are."""
    if not any(folder.glob("part-*.parquet")):
        return {}
    parts = f"read_parquet('{sql(folder)}/part-*.parquet', filename = true)"
    with open_database(folder) as connection:
        rows = connection.execute(f"SELECT filename, count(*) FROM {parts} WHERE error IN {UNANSWERED} GROUP BY ALL")
        return {Path(name): count for name, count in rows.fetchall()}


def _try(job: Job[DescribeSettings], shards: Sequence[Shard], again: Container[Path]) -> None:
    """Ask again where that is all there is to do: later stages can do without, should the server be gone."""
    try:
        _describe(job, shards, again)
    except UserError as error:
        console.print(f"  asked again without success: {error}", soft_wrap=True, markup=False)


def items(tables: Mapping[str, object]) -> str:
    """SQL for the pictures and what is known of them (see `Known`), in the order in which they lie in the source."""
    source = _source(tables)
    tags = f"LEFT JOIN (SELECT image_id, tags, rating FROM {source}) USING (image_id)" if source else ""
    text = 'LEFT JOIN (SELECT image_id, text FROM "ocr") USING (image_id)' if "ocr" in tables else ""
    categories = {"characters": "character", "copyright": "copyright", "artist": "artist", "general": "general"}
    names = ", ".join(_names(column, category, source) for column, category in categories.items())
    return f"""
        SELECT image_id, locations, {names},
            {"rating" if source else "NULL"}::VARCHAR AS rating, {"text" if text else "NULL"}::VARCHAR AS text
        FROM ({PICTURES}) {tags} {text}
        ORDER BY locations[1]
    """


def _source(tables: Mapping[str, object]) -> str | None:
    """The table that knows the tags."""
    return next((name for name in ("tags", "merge") if name in tables), None)


def _names(column: str, category: str, source: str | None) -> str:
    found = f"[tag.name FOR tag IN coalesce(tags, []) IF tag.category = '{category}']" if source else "[]"
    return f"{found}::VARCHAR[] AS {column}"


def _all_characters(job: Job[DescribeSettings]) -> Names:
    """Every character that the tags of the corpus name."""
    source = _source(job.tables)
    if source is None:
        return Names([])
    with job.connect() as connection:
        rows = connection.sql(
            f"SELECT DISTINCT tag.name FROM (SELECT unnest(tags) AS tag FROM {source}) WHERE tag.category = 'character'"
        )
        return Names(name for (name,) in rows.fetchall())


def _describe(job: Job[DescribeSettings], shards: Sequence[Shard], again: Container[Path]) -> None:
    settings = job.settings
    order = Order(settings.styles, settings.attempts, _all_characters(job))
    frame = Frame(Corpus(job.source), settings.side, settings.max_pixels)
    with Preparer(frame, job.engine.cores) as preparer:
        if settings.server:
            from caption import window

            work = partial(window.describe, settings=settings.server, order=order, preparer=preparer, write=write)
        else:
            from caption import local

            assert settings.local
            work = partial(local.describe, settings=settings.local, order=order, preparer=preparer, write=write)
        finish(shards, work, "describe", "pictures", again={shard for shard in shards if shard.part in again})


def write(shard: Shard, rows: Sequence[Row]) -> None:
    """Write the part of one shard."""
    with atomic_file(shard.part) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, DESCRIBE), temporary, compression="zstd")


STAGE = Stage(settings=DescribeSettings, version=1, run=run, incremental=True)
