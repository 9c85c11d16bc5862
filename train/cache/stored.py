"""Tensors as bytes, in the forms in which the cache stores them: bfloat16, or int8 in blocks."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from train.cache import int8
from train.cache.settings import Dtype

ERROR = pa.field("error", pa.float32(), nullable=False)
"""Column of shards in int8: |given back - encoded| / |encoded| (Euclidean norms) of each tensor."""


def layout(dtype: Dtype) -> dict[str, Any]:
    """What a description says of the form."""
    return {"dtype": dtype} | ({"block": int8.BLOCK} if dtype == "int8" else {})


def schema_of(schema: pa.Schema, dtype: Dtype) -> pa.Schema:
    """The schema of shards whose tensors have a form, from that of bfloat16."""
    return schema.append(ERROR) if dtype == "int8" else schema


def size(numbers: int, dtype: Dtype) -> int:
    """Bytes of a tensor of so many numbers."""
    return int8.size(numbers) if dtype == "int8" else 2 * numbers


def to_bytes(tensor: Tensor, dtype: Dtype = "bfloat16") -> Tensor:
    """The bytes (uint8) of a tensor of finite numbers: little-endian, in row-major order."""
    if dtype == "int8":
        return int8.quantised(tensor)
    return tensor.to(torch.bfloat16).flatten().view(torch.uint8)


def from_bytes(data: bytearray, shape: Sequence[int], dtype: Dtype = "bfloat16") -> Tensor:
    """The tensor of a value, bfloat16 whatever its form; where that is bfloat16, it lies in the memory of `data`."""
    if not data:  # torch.frombuffer refuses it; a caption that is nothing but the prefix has no rows of its own.
        return torch.empty(0, dtype=torch.bfloat16).view(*shape)
    if dtype == "int8":
        return int8.restored(torch.frombuffer(data, dtype=torch.uint8), shape)
    return torch.frombuffer(data, dtype=torch.bfloat16).view(*shape)


def columns(name: str, tensor: Tensor, dtype: Dtype) -> dict[str, Any]:
    """The columns of a row that hold a tensor: its bytes, and in int8 what the form has cost it."""
    data = to_bytes(tensor, dtype)
    return {name: data} if dtype == "bfloat16" else {name: data, ERROR.name: _error(tensor, data)}


def _error(tensor: Tensor, data: Tensor) -> float:
    """Of a tensor in int8. Rounded, for the order of a sum is not the same with any number of threads."""
    given = tensor.float()
    error = int8.restored(data, tensor.shape).float().sub_(given)
    return round(float(error.norm() / given.norm().clamp_min(int8.TINY)), 5)


def record_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows whose one large_binary column is given as tensors of bytes."""
    found = {field.name: [row[field.name] for row in rows] for field in schema}
    arrays = [
        _binary(found[field.name]) if pa.types.is_large_binary(field.type) else pa.array(found[field.name], field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _binary(values: Sequence[Tensor]) -> pa.Array:
    """A value for each tensor of bytes. Copied once: pyarrow's own way through Python's bytes takes ten times as
    long."""
    ends = np.fromiter(accumulate(map(len, values), initial=0), np.int64, len(values) + 1)
    data = torch.cat(list(values)).numpy()
    return pa.Array.from_buffers(pa.large_binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(data)])


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. The extremes tell, in a thirtieth of the time of looking at each number by itself."""
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
