"""Stages whose table has a row per picture, made by a model that looks at it: embeddings, classes, tags.

The model works on the GPUs of this machine, one copy each, or on its CPU; processes read and decode ahead of it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import PositiveInt

from shared.about import ABOUT, claim, read_about
from shared.corpus import Corpus
from shared.errors import UserError
from shared.files import atomic_file
from shared.fingerprint import fingerprint
from shared.images import MAX_PIXELS
from shared.settings import Settings
from shared.stages import PICTURES, Job
from shared.vision import Decode, Precision
from shared.vision.geometry import Geometry
from shared.worklist import Shard, WorkList, finish

if TYPE_CHECKING:  # PyTorch takes seconds to import, and is needed only where there is work.
    from torch import nn

    from shared.vision.encode import Encoded


class VisionSettings(Settings):
    """How pictures are brought to a model."""

    precision: Precision = "float16"
    """What a GPU computes in."""
    decode: Decode = "reduced"
    """How JPEGs are decoded; see `shared.vision.Decode`."""
    batch: PositiveInt = 128
    """Pictures that are computed together."""
    max_pixels: PositiveInt = MAX_PIXELS
    """As in `ingest`."""
    shard_rows: PositiveInt = 4096
    """Pictures per shard, the unit of resume."""


@dataclass(frozen=True)
class Model:
    """From normalised pictures (n, 3, side, side) to vectors (n, dim)."""

    module: "nn.Module"
    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: dict[str, Any]
    """What the vectors depend on: the model's name, a hash of its weights, how pictures are prepared."""
    own_runtime: bool = False
    """The module computes by means of its own, whatever the device, from pictures in the main memory."""


Columns = Callable[[NDArray[np.float32], pa.BooleanArray], list[pa.Array]]
"""From vectors (n, dim) to columns of the table; rows that are not valid must become null."""


def run(
    job: Job[Any], load: Callable[[], tuple[Model, Columns]], fields: Callable[[dict[str, Any]], list[pa.Field]]
) -> str:
    """Bring the table up to date with the pictures that are still kept; returns a digest of these and the model.

    `load` gives the model and what its vectors become, and is called only where there is something to do; `fields` are
    the columns that these become, by what `read_about` says.
    """
    work = WorkList(job.folder, ("image_id",), job.settings.shard_rows)
    with job.connect() as connection:
        digest = work.follow(connection, PICTURES)
    shards = work.shards()
    if not all(shard.part.exists() for shard in shards) or not (job.folder / ABOUT).exists():
        _compute(job, *load(), shards, fields)
    about = read_about(job.folder)
    work.allow_empty(schema(fields(about), about))
    return fingerprint([digest, about])


def schema(fields: Sequence[pa.Field], about: dict[str, Any]) -> pa.Schema:
    """Of the table: the `fields` are null where `error` says why."""
    first, *last = (
        pa.field(name, pa.string(), nullable=name != "image_id") for name in ("image_id", "error", "detail")
    )
    return pa.schema([first, *fields, *last], {"about": json.dumps(about)})


def read_vectors(job: Job[Any], stage: str, column: str) -> Iterator[tuple[pa.Array, NDArray[np.float16]]]:
    """The image ids and vectors (n, dim) of a stage's table, in pieces; pictures without a vector are left out."""
    dim = read_about(job.tables[stage])["dim"]
    with job.connect() as connection:
        query = f"SELECT image_id, {column} FROM {stage} WHERE {column} IS NOT NULL"
        for batch in connection.sql(query).to_arrow_reader(8192):
            vectors = np.frombuffer(b"".join(batch[column].to_pylist()), "<f2").reshape(-1, dim)
            yield batch["image_id"], vectors


def _compute(
    job: Job[Any],
    model: Model,
    columns: Columns,
    shards: Sequence[Shard],
    fields: Callable[[dict[str, Any]], list[pa.Field]],
) -> None:
    from shared.device import devices
    from shared.vision.encode import encode
    from shared.vision.feeder import Feeder
    from shared.vision.forward import Forward

    settings, places = job.settings, devices(cpu=model.own_runtime)
    if settings.decode == "gpu" and places[0].type != "cuda":
        raise UserError(
            f"{job.folder.parent.name}.decode = gpu: its model does not run on a GPU here; use reduced or full"
        )
    forwards = [Forward(model.module, model.mean, model.std, place, settings.precision) for place in places]
    about = claim(job.folder, model.about | {"decode": settings.decode, "precision": forwards[0].precision})
    corpus, cores = Corpus(job.source), job.engine.cores
    feeder = Feeder(corpus, model.geometry, settings.decode, settings.max_pixels, settings.batch, cores, len(places))
    with feeder:
        write = partial(_write, schema(fields(about), about), columns)
        work = partial(encode, feeder=feeder, forwards=forwards, batch=settings.batch, write=write)
        finish(shards, work, job.folder.parent.name, "pictures")


def _write(table: pa.Schema, columns: Columns, shard: Shard, parts: Sequence["Encoded"]) -> None:
    """Write the part of one shard."""
    rows = pa.concat_tables(_rows(table, columns, part) for part in parts)
    with atomic_file(shard.part) as temporary:
        pq.write_table(
            rows,
            temporary,
            compression="none",  # Such vectors do not compress.
            use_dictionary=["error"],
            write_statistics=["image_id", "error"],
        )


def _rows(table: pa.Schema, columns: Columns, part: "Encoded") -> pa.Table:
    finite = np.isfinite(part.vectors).min(axis=1).tolist()
    problems = [
        problem or (None if good else ("not_finite", "the model gave numbers that are not finite"))
        for problem, good in zip(part.problems, finite, strict=True)
    ]
    arrays = [
        pa.array([item["image_id"] for item in part.items]),
        *columns(part.vectors, pa.array([problem is None for problem in problems])),
        pa.array([problem and problem[0] for problem in problems], pa.string()),
        pa.array([problem and problem[1] for problem in problems], pa.string()),
    ]
    return pa.table(arrays, schema=table)


def halves(vectors: NDArray[np.float32], valid: pa.BooleanArray) -> list[pa.Array]:
    """The vectors themselves, as float16 bytes."""
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(vectors, "<f2")
    width = pa.binary(numbers.shape[1] * numbers.itemsize)
    return [pa.FixedSizeBinaryArray.from_buffers(width, len(numbers), [valid.buffers()[1], pa.py_buffer(numbers)])]


def halves_field(name: str) -> Callable[[dict[str, Any]], list[pa.Field]]:
    """The column of `halves`; the model's `about` must have its `dim`."""
    return lambda about: [pa.field(name, pa.binary(2 * about["dim"]))]
