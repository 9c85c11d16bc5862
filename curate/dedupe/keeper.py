"""The keeper rule: which of several copies stays."""

from typing import Literal

Criterion = Literal["pixels", "lossless", "quality", "bytes", "tags", "age"]

Keeper = tuple[Criterion, ...]
"""What decides, the first difference counting."""

KEEPER: Keeper = ("pixels", "lossless", "quality", "bytes", "tags", "age")

ORDER: dict[Criterion, str] = {
    "pixels": "pixels DESC",
    "lossless": "fidelity DESC",
    "quality": "quality DESC NULLS LAST",
    "bytes": "CASE WHEN fidelity < 2 THEN bytes END DESC NULLS LAST",
    "tags": "tag_count DESC",
    "age": "created_at ASC NULLS LAST",
}
"""More pixels; lossless over lossy over a lossless re-save of the lossy one; a higher JPEG quality; more bytes, but not
among lossless files, where they only tell how well the file was packed; more tags; older."""

LOSSLESS = ("BMP", "PNG", "PPM", "QOI", "TGA", "TIFF")
"""Formats taken for lossless. Not GIF, which has 256 colours; not WebP, AVIF and JPEG 2000, which can be either."""


def ranked(keeper: Keeper = KEEPER) -> str:
    """SQL over `ingest`, `metadata` and `pixels`: one row per readable picture, `rank` 1 for the best of all.

    Where all is equal the image id decides. `pixel_hash` is null where nothing can have the same pixels.
    """
    order = ", ".join([*(ORDER[criterion] for criterion in keeper), "image_id"])
    return f"""
        SELECT *, row_number() OVER (ORDER BY {order}) AS rank
        FROM (
            SELECT
                *,
                CASE
                    WHEN NOT lossless THEN 1
                    WHEN pixel_hash IS NOT NULL AND NOT bool_and(lossless) OVER (PARTITION BY pixel_hash) THEN 0
                    ELSE 2
                END AS fidelity
            FROM ({_PICTURES})
        )
    """


_PICTURES = f"""
    SELECT
        image_id, width, height, flatness, phash, quality, bytes,
        coalesce(pixels.pixel_hash, ingest.pixel_hash) AS pixel_hash,
        width::BIGINT * height AS pixels,
        format IN {LOSSLESS} AS lossless,
        tag_count, created_at
    FROM (
        SELECT DISTINCT ON (image_id) image_id, width, height, flatness, phash, quality, bytes, pixel_hash, format
        FROM ingest WHERE error IS NULL
    ) AS ingest
    LEFT JOIN pixels USING (image_id)
    LEFT JOIN (
        SELECT image_id, max(coalesce(len(tags), 0)) AS tag_count, min(created_at) AS created_at
        FROM metadata WHERE error IS NULL GROUP BY image_id
    ) USING (image_id)
"""
