"""The stage `pixels`: a hash of all pixels, for pictures that may have a copy with the same ones.

`ingest` decodes a JPEG at a reduced scale, which is far cheaper, and hashing the pixels of a PNG costs as much as
everything else that is measured on it. A picture with the same pixels has the same size and nearly the same perceptual
hash: only those with such a companion are decoded again, in full.
"""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from curate.dedupe.hamming import pairs
from curate.measure import pixel_hash
from curate.quiet import quiet_decoders
from shared.corpus import Corpus
from shared.files import atomic_file, os_error
from shared.images import MAX_PIXELS, Unreadable, decode
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.worklist import Shard, WorkList, process

DISTANCE = 4
"""Bits by which perceptual hashes from two reductions of the same pixels may differ."""

PIXELS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("pixel_hash", pa.string()),
        pa.field("error", pa.string()),
    ]
)


class PixelsSettings(Settings):
    """How pictures are decoded again."""

    max_pixels: PositiveInt = MAX_PIXELS
    """As in `ingest`."""
    shard_rows: PositiveInt = 256
    """Pictures per shard, the unit of resume."""


def run(job: Job[PixelsSettings]) -> str:
    """Hash the pixels of those that need it; returns a digest of which these are."""
    work = WorkList(job.folder, ("image_id",), job.settings.shard_rows)
    wanted = candidates(job)
    work.extend(wanted)
    function = partial(hash_shard, Corpus(job.source), job.settings.max_pixels)
    work.allow_empty(PIXELS)
    process(work.shards(), function, job.engine, "pixels", "pictures")
    return work.declare(wanted)


def candidates(job: Job[PixelsSettings]) -> pa.Table:
    """(image_id, location) of pictures without a pixel hash that have such a companion."""
    with job.connect() as connection:
        distinct = connection.sql("SELECT DISTINCT phash FROM ingest WHERE phash IS NOT NULL ORDER BY phash")
        hashes = np.ascontiguousarray(distinct.fetchnumpy()["phash"], np.uint64)
        near = hashes[pairs(hashes, DISTANCE)]
        connection.register("near", pa.table({"a": near[:, 0], "b": near[:, 1]}))
        # Materialised: left to itself DuckDB joins all pictures of equal size with one another first.
        return connection.sql(
            """
            WITH pictures AS (
                SELECT image_id, any_value(pixel_hash) AS pixel_hash, any_value(phash) AS phash,
                    any_value((width, height)) AS size, min(location) AS location
                FROM ingest WHERE error IS NULL GROUP BY image_id
            ),
            kinds AS (SELECT phash, size, count(*) AS copies FROM pictures GROUP BY ALL),
            neighbours AS (SELECT a, b FROM near UNION ALL SELECT b, a FROM near),
            sized AS MATERIALIZED (SELECT a, b, size FROM neighbours JOIN kinds ON phash = a),
            close AS (
                SELECT phash, size FROM kinds WHERE copies > 1
                UNION
                SELECT a, sized.size FROM sized SEMI JOIN kinds ON kinds.phash = b AND kinds.size = sized.size
            )
            SELECT image_id, location FROM pictures SEMI JOIN close USING (phash, size)
            WHERE pixel_hash IS NULL ORDER BY location
            """
        ).to_arrow_table()


def hash_shard(corpus: Corpus, max_pixels: int, shard: Shard) -> None:
    """Write the part of one shard."""
    with quiet_decoders():
        rows = [hash_pixels(corpus, max_pixels, **item) for item in shard.items().to_pylist()]
    with atomic_file(shard.part) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, PIXELS), temporary)


def hash_pixels(corpus: Corpus, max_pixels: int, image_id: str, location: str) -> dict[str, str | None]:
    """The row of one picture. What cannot be read any more has no copies; it was measured, so it stays."""
    try:
        image = decode(corpus.read(location), max_pixels).image
    except (OSError, Unreadable) as error:
        detail = os_error(error) if isinstance(error, OSError) else str(error)
        return {"image_id": image_id, "pixel_hash": None, "error": detail}
    return {"image_id": image_id, "pixel_hash": pixel_hash(image), "error": None}


STAGE = Stage(settings=PixelsSettings, version=1, run=run, incremental=True)
