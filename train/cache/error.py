"""What storing tensors as int8 has cost, as measured when they were written: a column of their shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.tensors import CorruptTensor
from train.cache.stored import ERROR

Errors = Mapping[str, Mapping[str, float]]
"""`mean` and `max` of the relative errors of latents and of embeddings; of those in bfloat16 nothing."""


def errors(parts: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, float]]:
    """Of all tensors of some shards. Raises CorruptTensor."""
    found = {kind: np.concatenate([np.empty(0), *(_column(part) for part in files)]) for kind, files in parts.items()}
    return {
        kind: {"mean": round(float(values.mean()), 6), "max": round(float(values.max()), 6)}
        for kind, values in found.items()
        if len(values)
    }


def _column(part: Path) -> NDArray[np.float32]:
    if ERROR.name not in pq.read_schema(part).names:
        return np.empty(0, np.float32)
    values: NDArray[np.float32] = read_columns(part, [ERROR.name])[ERROR.name].to_numpy()
    return values


def read_columns(part: Path, names: list[str]) -> pa.Table:
    """Columns of a shard beside its tensors, their CRCs checked. Raises CorruptTensor."""
    try:
        return pq.read_table(part, columns=names, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CorruptTensor(f"{part}: {error}") from None


def told(found: Errors) -> list[str]:
    """A line for latents and for embeddings, where they are stored as int8."""
    return [
        f"{kind} stored as int8: relative error {error['mean']:.4f} on average, at most {error['max']:.4f}"
        for kind, error in found.items()
    ]
