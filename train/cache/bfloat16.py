"""bfloat16 tensors as bytes, the form in which the cache stores them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_bytes(tensor: Tensor) -> bytes:
    """Little-endian bfloat16 in row-major order."""
    return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def from_bytes(data: bytearray, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_bytes`; the tensor lies in the memory of `data`."""
    if not data:  # torch.frombuffer refuses it; a caption that is nothing but the prefix has no rows of its own.
        return torch.empty(0, dtype=torch.bfloat16).view(*shape)
    return torch.frombuffer(data, dtype=torch.bfloat16).view(*shape)
