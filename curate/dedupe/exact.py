"""The stage `exact`: pictures with the same pixels in other files. Of each group the keeper stays.

Copies with the same bytes share an image id, so they are one row here already.
"""

from curate.dedupe.keeper import RANKED
from shared.settings import Settings
from shared.stages import DECISIONS, Job, Stage
from shared.tables import write_query

QUERY = f"""
    WITH grouped AS (
        SELECT image_id, first_value(image_id) OVER (PARTITION BY pixel_hash ORDER BY rank) AS best FROM ({RANKED})
    )
    SELECT
        image_id,
        image_id = best AS keep,
        CASE WHEN NOT keep THEN 'pixel_copy' END AS reason,
        NULL AS detail,
        CASE WHEN NOT keep THEN best END AS keeper
    FROM grouped ORDER BY image_id
"""


class ExactSettings(Settings):
    """There is nothing to set."""


def run(job: Job[ExactSettings]) -> None:
    """Decide about every readable picture."""
    with job.connect() as connection:
        write_query(connection, QUERY, job.folder, DECISIONS)


STAGE = Stage(settings=ExactSettings, version=1, run=run, decides=True)
