"""Tensors as int8 in blocks with a scale each: 8.5 bits per number in place of 16.

A tensor is cut, in row-major order, into blocks of 32 numbers, of which the last may be shorter. The scale of a block
is its largest magnitude over 127, as bfloat16; a number is stored as the nearest multiple of it, from -127 to 127. The
bytes are all scales, then all numbers. So a large channel, as text encoders have them, costs no block but its own.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 32
BOUND = BLOCK**0.5 / 254
"""Largest |restored - given| / |given| (Euclidean norms), whatever is given, before what is restored is rounded: half a
scale for each number of a block, against the one number that is 127 scales. Rounding the scale itself adds 2^-8 of it.
Of normal numbers it is 0.0054."""

TINY = torch.finfo(torch.bfloat16).tiny
"""Smallest scale: that of zeros."""


def size(numbers: int) -> int:
    """Bytes of a tensor."""
    return numbers + 2 * _blocks(numbers)


def quantised(tensor: Tensor) -> Tensor:
    """The bytes (uint8) of a tensor whose numbers are finite."""
    numbers = tensor.float().flatten()
    blocks = pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    # Rounded to bfloat16, a scale may be too small by 2^-8: the largest number is then at most 127.5 of it.
    scales = (blocks.abs().amax(1, keepdim=True) / 127).clamp_min(TINY).bfloat16()
    values = (blocks / scales.float()).round_().clamp_(-127, 127).to(torch.int8).flatten()[: len(numbers)]
    return torch.cat([scales.view(torch.uint8).flatten(), values.view(torch.uint8)])


def restored(data: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor of bytes (uint8), rounded to bfloat16."""
    numbers = prod(shape)
    scales, values = data.split([2 * _blocks(numbers), numbers])
    blocks = pad(values.view(torch.int8), (0, -numbers % BLOCK)).view(-1, BLOCK)
    found = blocks * scales.clone().view(torch.bfloat16).float()[:, None]
    tensor: Tensor = found.flatten()[:numbers].bfloat16().view(*shape)
    return tensor


def _blocks(numbers: int) -> int:
    return -(-numbers // BLOCK)
