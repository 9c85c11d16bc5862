"""The stage `aesthetic`: named scores, from embeddings by heads, and from the classes of a classifier.

Each score is a field of the column `scores`. The field's metadata say what it was made with: the model, its weights
and preprocessing, and those of the head.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from curate.heads import load_head
from shared.about import read_about
from shared.errors import UserError
from shared.files import file_sha256
from shared.settings import Settings
from shared.stages import Job, Stage
from shared.tables import write_query
from shared.vision.table import read_vectors

CLASSES = ("worst", "low", "normal", "good", "great", "best", "masterpiece")
"""Of deepghs/anime_aesthetic, in their order."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z]\w*$")]


class AestheticSettings(Settings):
    """Scores by name."""

    heads: dict[Name, Path] = Field(default={})
    """Heads on the embeddings of the stage `embed`, such as laion_v2: sac+logos+ava1-l14-linearMSE.pth."""
    classes: dict[Name, Path | None] = Field(default={})
    """The mean class of the stage `classify`, from 0 (worst) to 6 (masterpiece); with a file `samples.npz`, as
    deepghs/anime_aesthetic has one, the share of its samples that are worse, 0 to 1."""


@dataclass(frozen=True)
class Score:
    """A column of scores."""

    compute: Callable[[NDArray[np.float16]], NDArray[np.float32]]
    about: Mapping[str, Any]


def run(job: Job[AestheticSettings]) -> None:
    """Score every picture that is still kept; what could not be embedded or classified has null."""
    sources = {
        ("embed", "embedding"): {name: _head(job, path) for name, path in job.settings.heads.items()},
        ("classify", "probabilities"): {name: _mean_class(job, path) for name, path in job.settings.classes.items()},
    }
    columns, joins, fields = [], "", []
    with job.connect() as connection:
        for (stage, vectors), scores in sources.items():
            if not scores:
                continue
            connection.register("scored", _scored(job, stage, vectors, scores))
            connection.execute(f"CREATE TEMP TABLE {stage}_scores AS FROM scored")
            joins += f" LEFT JOIN {stage}_scores USING (image_id)"
            columns += [f"{name} := {stage}_scores.{name}" for name in scores]
            fields += [pa.field(name, pa.float32(), metadata=_text(score.about)) for name, score in scores.items()]
        if not fields:
            raise UserError("aesthetic: there is nothing to compute; set aesthetic.heads or aesthetic.classes")
        query = f"SELECT image_id, struct_pack({', '.join(columns)}) AS scores FROM survivors{joins} ORDER BY image_id"
        schema = pa.schema([pa.field("image_id", pa.string(), nullable=False), pa.field("scores", pa.struct(fields))])
        write_query(connection, query, job.folder, schema)


def _text(about: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def _scored(job: Job[Any], stage: str, column: str, scores: Mapping[str, Score]) -> pa.RecordBatchReader:
    """(image_id, a column per score) of all vectors of a stage."""
    schema = pa.schema([("image_id", pa.string()), *((name, pa.float32()) for name in scores)])

    def batches() -> Iterator[pa.RecordBatch]:
        for image_id, vectors in read_vectors(job, stage, column):
            yield pa.record_batch([image_id, *(score.compute(vectors) for score in scores.values())], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _about(job: Job[Any], stage: str, setting: str) -> dict[str, Any]:
    if stage not in job.tables:
        raise UserError(f"aesthetic.{setting}: needs the stage curate.{stage} before it in the pipeline")
    return read_about(job.tables[stage])


def _head(job: Job[Any], path: Path) -> Score:
    about = _about(job, "embed", "heads")
    head = load_head(path, about["dim"])
    return Score(head.score, about | {"head": path.name, "head_weights": head.weights})


def _mean_class(job: Job[Any], samples: Path | None) -> Score:
    about = _about(job, "classify", "classes")
    names = about["classes"] or CLASSES
    if sorted(names) != sorted(CLASSES):
        raise UserError(f"aesthetic.classes: the classes are {', '.join(names)}; must be {', '.join(CLASSES)}")
    value = np.array([CLASSES.index(name) for name in names], np.float64)
    curve = _curve(samples) if samples else None

    def compute(probabilities: NDArray[np.float16]) -> NDArray[np.float32]:
        mean = probabilities.astype(np.float64) @ value
        return (np.interp(mean, *curve) if curve is not None else mean).astype(np.float32)

    return Score(
        compute, about | ({"samples": samples.name, "samples_hash": file_sha256(samples)[:16]} if samples else {})
    )


def _curve(samples: Path) -> NDArray[np.float64]:
    """Scores, ascending, and the share of samples below each: (2, n)."""
    try:
        with np.load(samples, allow_pickle=False) as arrays:
            curve = np.asarray(arrays[arrays.files[0]], np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{samples}: cannot be read ({error}); give a NumPy file of scores and percentiles") from None
    if curve.ndim != 2 or len(curve) != 2 or (np.diff(curve) < 0).any():
        raise UserError(f"{samples}: must be two ascending rows, scores and percentiles; its shape is {curve.shape}")
    return curve


STAGE = Stage(settings=AestheticSettings, version=1, run=run, adds=("scores",))
