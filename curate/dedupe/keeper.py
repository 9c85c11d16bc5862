"""The keeper rule: which of several copies stays."""

LOSSLESS = ("BMP", "PNG", "PPM", "QOI", "TGA", "TIFF")
"""Formats taken for lossless. Not GIF, which has 256 colours; not WebP, AVIF and JPEG 2000, which can be either."""

ORDER = """
    pixels DESC,
    lossless DESC,
    bytes DESC,
    tag_count DESC,
    created_at ASC NULLS LAST,
    image_id
"""
"""The best first: more pixels, lossless over lossy, more bytes, more tags, older, and the id where all is equal."""

RANKED = f"""
    SELECT *, row_number() OVER (ORDER BY {ORDER}) AS rank
    FROM (
        SELECT
            image_id, pixel_hash, phash, flatness, bytes,
            width::BIGINT * height AS pixels,
            format IN {LOSSLESS} AS lossless,
            max(coalesce(len(tags), 0)) AS tag_count,
            min(created_at) AS created_at
        FROM ingest WHERE error IS NULL
        GROUP BY ALL
    )
"""
"""SQL over the table `ingest`: one row per readable picture, `rank` 1 for the best of all."""
