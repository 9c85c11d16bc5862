"""The stage `quality`: how good a picture is among those of its time and rating, and when it was made, as tags.

A picture is compared with all pictures of its rating that were made within `window` days before and after it, itself
included; one without a date with those of its rating that have none. Its percentile is the share of them that score
lower plus half of those that score the same: it does not depend on how ties are ordered, and a picture alone is at 50.
It is exact.

Illustrious found that scores drift with time and differ by rating, hence "a percentile-based moving window"; it does
not say how wide (arXiv 2409.19946, section 3.1.2).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from curate.sources.metadata import RATINGS
from shared.errors import UserError
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.tables import read, write_parts

QUALITY = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("quality_tag", pa.string()),
        pa.field("quality_percentile", pa.float64()),
        pa.field("year_tag", pa.string()),
    ]
)

LEVELS: Mapping[str, Mapping[str, float]] = {
    # arXiv 2409.19946, table 3
    "illustrious": {
        "worst quality": 8,
        "bad quality": 20,
        "average quality": 60,
        "good quality": 82,
        "best quality": 92,
        "masterpiece": 100,
    },
    # huggingface.co/Laxhar/noobai-XL-1.0, which ranks all times together, older scores decayed
    "noobai": {"worst quality": 30, "normal quality": 60, "good quality": 85, "best quality": 95, "masterpiece": 100},
    # huggingface.co/cagliostrolab/animagine-xl-3.1, which ranks all times together
    "animagine": {
        "worst quality": 10,
        "low quality": 25,
        "normal quality": 50,
        "good quality": 75,
        "great quality": 85,
        "best quality": 95,
        "masterpiece": 100,
    },
}
"""Quality tags of published recipes, as they stand in prompts, with the percentile up to which each is given."""

YEARS: Mapping[str, Mapping[str, float]] = {
    # arXiv 2409.19946, table 4
    "illustrious": {"oldest": 2017, "old": 2019, "modern": 2020, "recent": 2022, "newest": 2023},
    "noobai": {"old": 2010, "early": 2014, "mid": 2017, "recent": 2020, "newest": 2024},
    "animagine": {"oldest": 2010, "early": 2014, "mid": 2017, "recent": 2020, "newest": 2024},
}
"""Year tags of the same recipes, with the year up to which each is given."""

SOURCE_SCORES = ("score", "favorites")
"""Columns of `merge` that hold what people at the source thought. They need time to settle."""

DAY = 24 * 60 * 60 * 1000
"""In milliseconds, as all times here."""


def _recipe(recipes: Mapping[str, Mapping[str, float]]) -> Callable[[Any], Any]:
    """Look up a recipe by its name; leave anything else as it is."""

    def look_up(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in recipes:
            raise ValueError(f"give names with upper bounds, or a recipe: {', '.join(recipes)}")
        return recipes[value]

    return look_up


def _ascending(bounds: Mapping[str, float]) -> Mapping[str, float]:
    """Put bounds in order."""
    if not bounds or len(set(bounds.values())) < len(bounds):
        raise ValueError("give names with upper bounds, each another")
    return dict(sorted(bounds.items(), key=lambda item: item[1]))


def _by_name(weights: Mapping[str, float]) -> Mapping[str, float]:
    """Put scores in order: their sum depends on it, and the fingerprint does not see it."""
    return dict(sorted(weights.items()))


def _complete(levels: Mapping[str, float]) -> Mapping[str, float]:
    if max(levels.values()) != 100:
        raise ValueError("the last level must end at 100")
    return levels


Levels = Annotated[
    Mapping[str, PositiveFloat],
    BeforeValidator(_recipe(LEVELS)),
    AfterValidator(_ascending),
    AfterValidator(_complete),
]
Years = Annotated[Mapping[str, int], BeforeValidator(_recipe(YEARS)), AfterValidator(_ascending)]


class QualitySettings(Settings):
    """What counts as quality, among which pictures, and what it is called."""

    of: Annotated[Mapping[str, PositiveFloat], AfterValidator(_by_name)] = Field(default={"score": 1.0}, min_length=1)
    """Scores and their weights: score, favorites, heads of the stage `aesthetic`. Several are mixed as the weighted
    mean of their percentiles, which is ranked again. A picture that lacks one of them gets no quality tag."""
    window: PositiveInt = 180
    """A picture is compared with those made so many days before and after it."""
    settled: NonNegativeInt = 30
    """Days until `score` and `favorites` mean something. Those of a picture that is younger, seen from the newest one
    of the corpus, are ignored."""
    levels: Levels = Field(default="illustrious", validate_default=True)
    """Quality tags with the percentile up to which each is given; or the recipe that has them: illustrious, noobai,
    animagine."""
    years: Years = Field(default="illustrious", validate_default=True)
    """Year tags with the year up to which each is given, the last one for all later years too; or the recipe."""


def below_and_equal(
    ranks: NDArray[np.int32], start: NDArray[np.int32], stop: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For every i, how many of ranks[start[i]:stop[i]] (from 0) are less than ranks[i], and how many equal it.

    A wavelet matrix (Claude and Navarro, 2012), built and asked one level at a time for all i at once: `row` is sorted
    by one bit after the other, stably, from the highest, so that those of a range that agree with ranks[i] so far stay
    a range. O(n log n) time, O(n) memory.
    """
    row, below = ranks, np.zeros_like(ranks)
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        ones = (row >> bit & 1).astype(bool)
        zeros = np.zeros(len(row) + 1, np.int32)  # zeros[k]: how many of row[:k] have a 0 here
        np.cumsum(~ones, out=zeros[1:])
        start_zero, stop_zero = zeros[start], zeros[stop]
        one = (ranks >> bit & 1).astype(bool)
        below += np.where(one, stop_zero - start_zero, 0)
        start = np.where(one, zeros[-1] + start - start_zero, start_zero)
        stop = np.where(one, zeros[-1] + stop - stop_zero, stop_zero)
        row = np.concatenate([row[~ones], row[ones]])
    return below, stop - start


def percentiles(scores: NDArray[np.float64], times: NDArray[np.int64], reach: int) -> NDArray[np.float64]:
    """The percentile of every score among those whose time is at most `reach` away."""
    order = np.argsort(times, kind="stable")
    times = times[order]
    start = np.searchsorted(times, times - reach, side="left").astype(np.int32)
    stop = np.searchsorted(times, times + reach, side="right").astype(np.int32)
    ranks = np.unique(scores[order], return_inverse=True)[1].astype(np.int32)
    below, equal = below_and_equal(ranks, start, stop)
    found = np.empty(len(scores))
    found[order] = 50.0 * (2 * below.astype(np.int64) + equal) / (stop - start)
    return found


def mixed(
    scores: Sequence[NDArray[np.float64]], weights: Sequence[float], times: NDArray[np.int64], reach: int
) -> NDArray[np.float64]:
    """The percentile of every picture by the weighted mean of its percentiles.

    The mean is ranked again, for the means of percentiles crowd around 50: hardly one would be a masterpiece.
    """
    if len(scores) == 1:
        return percentiles(scores[0], times, reach)
    each = [weight * percentiles(score, times, reach) for score, weight in zip(scores, weights, strict=True)]
    return percentiles(np.sum(each, axis=0), times, reach)


def named(values: NDArray[np.float64], bounds: Mapping[str, float]) -> pa.Array:
    """The first name whose bound a value does not exceed, above all bounds the last name; null for NaN."""
    places = np.searchsorted(list(bounds.values())[:-1], values, side="left")
    return pa.array(list(bounds), pa.string()).take(pa.array(places, mask=np.isnan(values)))


def run(job: Job[QualitySettings]) -> None:
    """Tag every picture that is still kept."""
    with job.connect() as connection:
        connection.execute(f"CREATE TEMP TABLE pictures AS {_pictures(job)}")
        found = _percentiles(connection, job.settings)
        rows = read(connection, "SELECT image_id, year(made) AS year FROM pictures")
        write_parts(_tagged(rows, found, job.settings), job.folder, QUALITY)


def _pictures(job: Job[QualitySettings]) -> str:
    """SQL for what is known about each picture, in the order of the table to be written."""
    scores = "".join(f", {_score(job, name)} AS score_{place}" for place, name in enumerate(job.settings.of))
    aesthetic = "LEFT JOIN aesthetic USING (image_id)" if "aesthetic" in job.tables else ""
    tags = "LEFT JOIN tags USING (image_id)" if "tags" in job.tables else ""
    rating = "coalesce(tags.rating, merge.rating)" if tags else "rating"
    return f"""
        SELECT
            image_id,
            coalesce(list_position({list(RATINGS)}, {rating}), 0) AS rating,
            make_timestamp_ms(epoch_ms(created_at)) AS made  -- UTC, whatever the zone of this machine
            {scores}
        FROM merge {aesthetic} {tags} SEMI JOIN survivors USING (image_id) ORDER BY image_id
    """


def _score(job: Job[QualitySettings], name: str) -> str:
    """SQL for one score of a picture, null where there is none or it is not settled. Raises UserError if unknown."""
    if name in SOURCE_SCORES:
        newest = "(SELECT max(created_at) FROM merge)"
        young = f"epoch_ms({newest}) - epoch_ms(created_at) < {job.settings.settled * DAY}"
        return f"CASE WHEN {young} THEN NULL ELSE merge.{name} END"
    heads = _heads(job)
    if name not in heads:
        raise UserError(f"quality.of: no score {name!r}; there are: {', '.join([*SOURCE_SCORES, *heads])}")
    quoted = name.replace('"', '""')
    return f'aesthetic.scores."{quoted}"'


def _heads(job: Job[QualitySettings]) -> list[str]:
    """Names of the aesthetic scores there are."""
    if "aesthetic" not in job.tables:
        return []
    part = next(job.tables["aesthetic"].glob("part-*.parquet"))
    return [head.name for head in pq.read_schema(part).field("scores").type]


def _percentiles(connection: duckdb.DuckDBPyConnection, settings: QualitySettings) -> NDArray[np.float64]:
    """The percentile of every row of `pictures`, NaN where a score is missing."""
    weights = list(settings.of.values())
    scores = [_column(connection, f"coalesce(score_{place}::DOUBLE, 'nan')") for place in range(len(weights))]
    groups = _column(connection, "2 * rating + (made IS NULL)::INTEGER")
    times = _column(connection, "coalesce(epoch_ms(made), 0)")
    found = np.full(len(times), np.nan)
    comparable = ~np.isnan(scores).any(axis=0)
    for group in np.unique(groups):
        members = np.flatnonzero(comparable & (groups == group))
        found[members] = mixed([score[members] for score in scores], weights, times[members], settings.window * DAY)
    return found


def _column(connection: duckdb.DuckDBPyConnection, expression: str) -> NDArray[Any]:
    """A column of numbers without nulls, in the order of `pictures`."""
    numbers: NDArray[Any] = (
        read(connection, f"SELECT {expression} AS number FROM pictures").read_all()["number"].to_numpy()
    )
    return numbers


def _tagged(
    pictures: pa.RecordBatchReader, found: NDArray[np.float64], settings: QualitySettings
) -> Iterator[pa.RecordBatch]:
    """Rows of QUALITY; `found` has the percentiles of all `pictures`."""
    done = 0
    for batch in pictures:
        part = found[done : done + len(batch)]
        done += len(batch)
        years = batch["year"].to_numpy(zero_copy_only=False).astype(np.float64)
        yield pa.record_batch(
            {
                "image_id": batch["image_id"],
                "quality_tag": named(part, settings.levels),
                "quality_percentile": pa.array(part, from_pandas=True),
                "year_tag": named(years, settings.years),
            }
        )


STAGE = Stage(
    settings=QualitySettings,
    version=2,
    run=run,
    adds=tuple(name for name in QUALITY.names if name != "image_id"),
)
