"""The stage `filter`: pictures that are of no use for training, or must not be used.

The first rule that a picture fails is its reason. The safety rule comes first and has no off switch.
"""

from typing import Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from shared.errors import UserError
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query

MINOR_TAGS = frozenset(
    {
        "aged_down",
        "baby",
        "babies",
        "child",
        "children",
        "child_on_child",
        "cub",
        "elementary_school_student",
        "female_child",
        "infant",
        "kid",
        "kids",
        "kindergarten",
        "kindergartener",
        "loli",
        "lolicon",
        "lolidom",
        "male_child",
        "minor",
        "minors",
        "multiple_lolis",
        "multiple_shotas",
        "newborn",
        "oppai_loli",
        "preteen",
        "shota",
        "shotacon",
        "shotadom",
        "straight_shota",
        "toddler",
        "toddlercon",
        "toddlers",
        "underage",
        "young",
        "young_child",
        "younger_child",
    }
)
"""Tags that say that a minor is depicted. A picture with one of them must be rated general."""


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
    keep_animated: bool = False
    """Keep the first frame of animated files."""
    max_variants: PositiveInt | None = None
    """Most pictures of a group of variants (one drawing with other clothes, closed eyes...); the best ones stay."""
    ratings: tuple[Literal["general", "sensitive", "questionable", "explicit", "unknown"], ...] = (
        "general",
        "sensitive",
        "unknown",
    )
    """Ratings that are kept; unknown: without a rating."""


class Rule(NamedTuple):
    """A reason to drop a picture: SQL that is true for it, and SQL for the numbers behind it."""

    reason: str
    fails: str
    detail: str


def rules(settings: FilterSettings) -> list[Rule]:
    """The rules in the order in which they are asked."""
    size = "'width', width, 'height', height"
    minor = f"[tag.name FOR tag IN tags IF tag.name IN {sorted(MINOR_TAGS)}]"
    asked = [
        Rule("safety", f"len({minor}) > 0 AND rated <> 'general'", f"'rating', rated, 'tags', {minor}"),
        Rule("rating", f"rated NOT IN {list(settings.ratings)}", "'rating', rated"),
    ]
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
    return asked


def query(asked: list[Rule], max_variants: int | None) -> str:
    """SQL for the decisions about every picture of `merge` that is still kept.

    The cap on variants comes last: what another rule drops does not count.
    """
    reason = " ".join(f"WHEN {rule.fails} THEN '{rule.reason}'" for rule in asked)
    detail = " ".join(f"WHEN '{rule.reason}' THEN json_object({rule.detail})" for rule in asked)
    return f"""
        WITH pictures AS (
            SELECT
                *,
                width::BIGINT * height AS pixels,
                greatest(width, height) / least(width, height) AS aspect,
                coalesce(rating, 'unknown') AS rated
            FROM merge SEMI JOIN survivors USING (image_id)
        ),
        judged AS (SELECT *, CASE {reason} END AS failed FROM pictures),
        placed AS ({_PLACED if max_variants else "SELECT *, 1 AS place FROM judged"}),
        verdicts AS (
            SELECT *, CASE WHEN failed IS NULL AND place > {max_variants or 1} THEN 'variant' ELSE failed END AS reason
            FROM placed
        )
        SELECT
            image_id,
            reason IS NULL AS keep,
            reason,
            CASE reason {detail} WHEN 'variant' THEN json_object('place', place) END AS detail,
            NULL AS keeper
        FROM verdicts ORDER BY image_id
    """


_PLACED = """
    SELECT judged.*, CASE WHEN variant_group IS NULL THEN 1 ELSE
        row_number() OVER (PARTITION BY variant_group, failed IS NULL ORDER BY variant_rank) END AS place
    FROM judged LEFT JOIN near USING (image_id)
"""


def run(job: Job[FilterSettings]) -> None:
    """Decide about every picture that is still kept."""
    settings = job.settings
    if settings.max_variants is not None and "near" not in job.tables:
        raise UserError("filter.max_variants: the pipeline has no stage `near`, which finds variants")
    with job.connect() as connection:
        write_query(connection, query(rules(settings), settings.max_variants), job.folder, DECISIONS)


STAGE = Stage(settings=FilterSettings, version=2, run=run, decides=True)
