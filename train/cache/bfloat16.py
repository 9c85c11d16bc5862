"""bfloat16 tensors as bytes, the form in which the cache stores them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


def record_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows whose one large_binary column is given as tensors: little-endian bfloat16 in row-major order."""
    columns = {field.name: [row[field.name] for row in rows] for field in schema}
    arrays = [
        _column(columns[field.name])
        if pa.types.is_large_binary(field.type)
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _column(tensors: Sequence[Tensor]) -> pa.Array:
    """A value for each tensor. Copied once: pyarrow's own way through Python's bytes takes ten times as long."""
    flat = [tensor.to(torch.bfloat16).flatten() for tensor in tensors]
    ends = np.fromiter(accumulate((2 * len(values) for values in flat), initial=0), np.int64, len(flat) + 1)
    data = torch.cat(flat).view(torch.int16).numpy()
    return pa.Array.from_buffers(pa.large_binary(), len(flat), [None, pa.py_buffer(ends), pa.py_buffer(data)])


def from_bytes(data: bytearray, shape: Sequence[int]) -> Tensor:
    """The tensor of a value; it lies in the memory of `data`."""
    if not data:  # torch.frombuffer refuses it; a caption that is nothing but the prefix has no rows of its own.
        return torch.empty(0, dtype=torch.bfloat16).view(*shape)
    return torch.frombuffer(data, dtype=torch.bfloat16).view(*shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. The extremes tell, in a thirtieth of the time of looking at each number by itself."""
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
