"""The stage `balance`: how often training should see a picture, so that rare characters, series and artists are
learned.

Repeat factor sampling (Gupta et al., LVIS, CVPR 2019, section 5.1): a concept c that a share f(c) of the pictures has
is repeated r(c) = max(1, sqrt(t / f(c))) times, a picture as often as the rarest of its concepts. Ours is the cap,
without which the only picture of a character would be seen as often as hundreds of others.
"""

from typing import Literal

import pyarrow as pa
from pydantic import Field

from shared.settings import Settings
from shared.stages import Job, Stage
from shared.tables import write_query

WEIGHTS = pa.schema(
    [pa.field("image_id", pa.string(), nullable=False), pa.field("weight", pa.float64(), nullable=False)]
)
"""`weight` is 1 for a picture that has no rare concept, more for others."""


class BalanceSettings(Settings):
    """What counts as a concept, and what as rare."""

    categories: tuple[Literal["character", "copyright", "artist", "general"], ...] = (
        "character",
        "copyright",
        "artist",
    )
    """Tags of these categories are concepts."""
    rare: float = Field(default=0.001, gt=0, le=1)
    """t: a concept is rare that a smaller share of the pictures has. LVIS takes 0.001."""
    most: float = Field(default=5.0, ge=1)
    """No weight is larger."""


def run(job: Job[BalanceSettings]) -> None:
    """Weigh every picture that is still kept."""
    settings = job.settings
    query = f"""
        WITH pictures AS (
            SELECT image_id, list_distinct([tag.name FOR tag IN tags IF tag.category IN {list(settings.categories)}])
                AS concepts
            FROM {"tags" if "tags" in job.tables else "merge"} SEMI JOIN survivors USING (image_id)
        ),
        concepts AS (SELECT image_id, unnest(concepts) AS concept FROM pictures),
        shares AS (
            SELECT concept, count(*) / (SELECT count(*) FROM pictures) AS share FROM concepts GROUP BY concept
        ),
        rarest AS (SELECT image_id, min(share) AS share FROM concepts JOIN shares USING (concept) GROUP BY image_id)
        SELECT image_id, least({settings.most}, greatest(1, sqrt({settings.rare} / coalesce(share, 1)))) AS weight
        FROM pictures LEFT JOIN rarest USING (image_id) ORDER BY image_id
    """
    with job.connect() as connection:
        write_query(connection, query, job.folder, WEIGHTS)


STAGE = Stage(settings=BalanceSettings, version=1, run=run, adds=("weight",))
