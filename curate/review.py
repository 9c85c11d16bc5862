"""The stage `review`: what only models can see, asked when they have looked at the pictures that `filter` keeps.

The safety rule of `filter` again, with the tags and ratings that the stage `tags` has united, and limits to text in the
picture. Where a pipeline has the stage `tags`, `review` must stand behind it.
"""

from pydantic import Field

from curate.filter import Rating, safety_rules
from curate.rules import VERDICT, Rule, judge
from shared.errors import UserError
from shared.pipelines import Pipeline
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query


class ReviewSettings(Settings):
    """Limits a picture must keep. None: no limit."""

    ratings: tuple[Rating, ...] = ("general", "sensitive", "unknown")
    """Ratings that are kept, the source's or else the tagger's; unknown: without a rating."""
    max_text_area: float | None = Field(default=None, ge=0, le=1)
    """Most of the area under text, by the stage `ocr`: pages of comics and screenshots have much."""
    keep_watermarked: bool = True
    """Keep pictures with an address, a handle or the name of a site written over them."""


def rules(settings: ReviewSettings) -> list[Rule]:
    """In the order in which they are asked."""
    asked = safety_rules(settings.ratings)
    if settings.max_text_area is not None:
        asked.append(Rule("text", f"text_area > {settings.max_text_area}", "'text_area', text_area"))
    if not settings.keep_watermarked:
        asked.append(Rule("watermark", "watermark", f"'texts', {_WATERMARKS}"))
    return asked


_WATERMARKS = "[line.text FOR line IN texts IF line.watermark]"


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise UserError, before any work, where tags would escape the safety rule, or there is no text to judge."""
    names = [spec.name for spec in pipeline.stages]
    places = {name: place for place, name in enumerate(names)}
    if "tags" in places and places.get("review", -1) < places["tags"]:
        raise UserError(
            f"pipeline {pipeline.name!r}: the safety rule must see the tags that the stage tags gives; "
            "put curate.review behind it"
        )
    for spec in pipeline.stages:
        if isinstance(spec.settings, ReviewSettings):
            text = spec.settings.max_text_area is not None or not spec.settings.keep_watermarked
            if text and places.get("ocr", len(names)) > places[spec.name]:
                raise UserError("review: limits to text need the stage caption.ocr before it")


def run(job: Job[ReviewSettings]) -> None:
    """Decide about every picture that is still kept."""
    normal, text = "tags" in job.tables, "ocr" in job.tables
    query = f"""
        WITH pictures AS (
            SELECT
                image_id,
                {"list_concat(merge.tags, coalesce(tags.tags, []))" if normal else "merge.tags"} AS tags,
                coalesce({"tags.rating, " if normal else ""}merge.rating, 'unknown') AS rated,
                {"text_area, watermark, texts," if text else ""}
                NULL::{VERDICT} AS verdict
            FROM merge SEMI JOIN survivors USING (image_id)
            {"LEFT JOIN tags USING (image_id)" if normal else ""}
            {"LEFT JOIN ocr USING (image_id)" if text else ""}
        ),
        verdicts AS (SELECT image_id, {judge(rules(job.settings))} AS verdict FROM pictures)
        SELECT image_id, verdict IS NULL AS keep, verdict.reason, verdict.detail, NULL AS keeper
        FROM verdicts ORDER BY image_id
    """
    with job.connect() as connection:
        write_query(connection, query, job.folder, DECISIONS)


STAGE = Stage(settings=ReviewSettings, version=1, run=run, decides=True)
