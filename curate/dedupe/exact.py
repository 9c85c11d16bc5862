"""The stage `exact`: pictures with the same pixels in other files. Of each group the keeper stays.

Copies with the same bytes share an image id, so they are one row here already.
"""

from curate.dedupe.keeper import KEEPER, Keeper, ranked
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query


class ExactSettings(Settings):
    """Which copy stays."""

    keeper: Keeper = KEEPER
    """What decides, the first difference counting: pixels, lossless, quality, bytes, tags, age."""


def run(job: Job[ExactSettings]) -> None:
    """Decide about every readable picture."""
    query = f"""
        WITH grouped AS (
            SELECT
                image_id,
                first_value(image_id) OVER (PARTITION BY coalesce(pixel_hash, image_id) ORDER BY rank) AS best
            FROM ({ranked(job.settings.keeper)})
        )
        SELECT
            image_id,
            image_id = best AS keep,
            CASE WHEN NOT keep THEN 'pixel_copy' END AS reason,
            NULL AS detail,
            CASE WHEN NOT keep THEN best END AS keeper
        FROM grouped ORDER BY image_id
    """
    with job.connect() as connection:
        write_query(connection, query, job.folder, DECISIONS)


STAGE = Stage(settings=ExactSettings, version=2, run=run, decides=True)
