"""Which of the cached pictures are trained on, and what the curated dataset says of them."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shared.errors import UserError
from train.cache.curated import open_curated
from train.cache.reader import CacheReader


def held_out(reader: CacheReader, share: float) -> int:
    """How many pictures are kept back for validation: the first ones of the cache, whose ids begin with the lowest
    digits.

    An id is a hash, so it is its own lot: a picture is held out or not whatever else there is in the dataset.
    """
    limit = f"{int(share * 2**64):016x}" if share < 1 else "g"
    below: int = pc.sum(pc.less(reader.image_ids, limit)).as_py() or 0
    return below


def values(work: Path, reader: CacheReader, expressions: Sequence[tuple[str, str]]) -> list[NDArray[np.float64]]:
    """What SQL expressions over the columns of the curated dataset give for each cached picture, by index.

    `expressions` are pairs of a setting's name, for errors, and the expression. NaN stands for NULL, and for pictures
    that are not in the dataset any more. Raises UserError for what is no expression of that dataset.
    """
    if not expressions:
        return []
    ids = pa.table({"image_id": reader.image_ids, "position": np.arange(reader.images)})
    found = []
    with open_curated(work) as database:
        database.register("cached", ids)
        for name, expression in expressions:
            query = (
                f"SELECT position, CAST(({expression}) AS DOUBLE) AS value FROM cached JOIN curated USING (image_id)"
            )
            try:
                rows = database.sql(query).to_arrow_table()
            except duckdb.Error as error:
                columns = database.sql("FROM curated LIMIT 0").columns
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"{name} = {expression!r}: {reason}\nthe curated dataset has the columns {', '.join(columns)}"
                ) from None
            column = np.full(reader.images, np.nan)
            column[rows["position"].to_numpy()] = rows["value"].to_numpy(zero_copy_only=False)
            found.append(column)
    return found


def weights_of(column: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """A column as weights, 1 on average. Raises UserError for values that are none."""
    wrong = ~(np.isfinite(column) & (column > 0))
    if wrong.any():
        raise UserError(
            f"{name}: {int(wrong.sum()):,} of {len(column):,} pictures have no positive number there; "
            "give an SQL expression that has one for all, such as coalesce(weight, 1)"
        )
    scaled: NDArray[np.float64] = column / column.mean()
    return scaled
