"""The stage `filter`: pictures that are of no use for training, or must not be used.

The first rule that a picture fails is its reason. The safety rule comes first and has no off switch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from curate.aesthetic import AestheticSettings
from curate.rules import VERDICT, Rule, judge
from curate.scores import Condition, check, compared, score_rules, scores_in, unscored
from shared.errors import UserError
from shared.pipelines import Pipeline
from shared.safety import MINOR_TAGS
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query

Rating = Literal["general", "sensitive", "questionable", "explicit", "unknown"]


class FilterSettings(Settings):
    """Limits a picture must keep. None: no limit."""

    min_side: NonNegativeInt = 0
    """Least pixels of the shorter side."""
    min_pixels: NonNegativeInt = 0
    """Least width x height."""
    max_pixels: PositiveInt | None = None
    """Most width x height."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Most longer side / shorter side."""
    max_flatness: float | None = Field(default=0.98, ge=0, le=1)
    """Most flatness: 1 is a picture in which nothing is drawn."""
    max_border: float | None = Field(default=None, ge=0, le=1)
    """Most of the area in bars of one colour along the edges, such as a letterbox; a plain background is one, too."""
    min_sharpness: NonNegativeFloat | None = None
    """Least variance of the Laplacian at 256 pixels: blur has little, but so has a drawing without detail."""
    keep_animated: bool = False
    """Keep the first frame of animated files."""
    max_variants: PositiveInt | None = None
    """Most pictures of a group of variants (one drawing with other clothes, closed eyes...); the best ones stay."""
    ratings: tuple[Rating, ...] = ("general", "sensitive", "unknown")
    """Ratings that are kept; unknown: without a rating."""
    scores: tuple[Condition, ...] = ()
    """What the scores of the stage `aesthetic` must be; all conditions must hold. A picture without a score that one of
    them names is dropped: nothing says that it holds."""


def safety_rules(ratings: Sequence[Rating]) -> list[Rule]:
    """The rule without an off switch, and the ratings that are kept, about `tags` and `rated`."""
    minor = f"list_distinct([tag.name FOR tag IN tags IF tag.name IN {sorted(MINOR_TAGS)}])"
    return [
        Rule("safety", f"len({minor}) > 0 AND rated <> 'general'", f"'rating', rated, 'tags', list_sort({minor})"),
        Rule("rating", f"rated NOT IN {list(ratings)}", "'rating', rated"),
    ]


def rules(settings: FilterSettings) -> list[Rule]:
    """The rules about a picture alone, in the order in which they are asked."""
    size = "'width', width, 'height', height"
    asked = safety_rules(settings.ratings)
    if not settings.keep_animated:
        asked.append(Rule("animated", "frames > 1", "'frames', frames"))
    asked.append(
        Rule("too_small", f"least(width, height) < {settings.min_side} OR pixels < {settings.min_pixels}", size)
    )
    if settings.max_pixels is not None:
        asked.append(Rule("too_large", f"pixels > {settings.max_pixels}", size))
    if settings.max_aspect is not None:
        asked.append(Rule("aspect", f"aspect > {settings.max_aspect}", f"'aspect', aspect, {size}"))
    if settings.max_flatness is not None:
        asked.append(Rule("flat", f"flatness > {settings.max_flatness}", "'flatness', flatness"))
    if settings.max_border is not None:
        asked.append(Rule("border", f"border > {settings.max_border}", "'border', border"))
    if settings.min_sharpness is not None:
        asked.append(Rule("blurred", f"sharpness < {settings.min_sharpness}", "'sharpness', sharpness"))
    return asked


def query(settings: FilterSettings, tables: Mapping[str, Path]) -> str:
    """SQL for the decisions about every picture of `merge` that is still kept.

    Rules that compare pictures come behind those about a picture alone, the cap on variants last: what an earlier rule
    drops does not count. Raises UserError where a table or a score is missing.
    """
    check(settings.scores, scores_in(tables))
    if settings.max_variants is not None and "near" not in tables:
        raise UserError("filter.max_variants: the pipeline has no stage `near`, which finds variants")
    most = settings.max_variants
    variant = [] if most is None else [Rule("variant", f"place > {most}", "'place', place")]
    return f"""
        WITH pictures AS (
            SELECT
                *,
                width::BIGINT * height AS pixels,
                greatest(width, height) / least(width, height) AS aspect,
                coalesce(rating, 'unknown') AS rated,
                year(make_timestamp_ms(epoch_ms(created_at))) AS year,  -- UTC, whatever the zone of this machine
                NULL::{VERDICT} AS verdict
            FROM merge {"LEFT JOIN aesthetic USING (image_id)" if settings.scores else ""}
            SEMI JOIN survivors USING (image_id)
        ),
        judged AS (
            SELECT image_id, rated AS rating, year{", scores" if settings.scores else ""},
                {judge([*rules(settings), *unscored(settings.scores)])} AS verdict
            FROM pictures
        ),
        scored AS (
            SELECT image_id, {judge(score_rules(settings.scores))} AS verdict
            FROM ({compared(settings.scores, "judged")})
        ),
        placed AS ({"SELECT * FROM scored" if most is None else _PLACED}),
        verdicts AS (SELECT image_id, {judge(variant)} AS verdict FROM placed)
        SELECT image_id, verdict IS NULL AS keep, verdict.reason, verdict.detail, NULL AS keeper
        FROM verdicts ORDER BY image_id
    """


_PLACED = """
    SELECT scored.*, CASE WHEN variant_group IS NOT NULL THEN
        row_number() OVER (PARTITION BY variant_group, verdict IS NULL ORDER BY variant_rank) END AS place
    FROM scored LEFT JOIN near USING (image_id)
"""


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise UserError, before any work, where the filter asks for scores that no stage before it computes."""
    known: list[str] | None = None
    for spec in pipeline.stages:
        if isinstance(spec.settings, AestheticSettings):
            known = sorted([*spec.settings.heads, *spec.settings.classes])
        elif spec.name == "aesthetic":
            return  # A stage of the user's own: only its table says which scores it has.
        elif isinstance(spec.settings, FilterSettings):
            check(spec.settings.scores, known)


def run(job: Job[FilterSettings]) -> None:
    """Decide about every picture that is still kept."""
    with job.connect() as connection:
        write_query(connection, query(job.settings, job.tables), job.folder, DECISIONS)


STAGE = Stage(settings=FilterSettings, version=4, run=run, decides=True)
