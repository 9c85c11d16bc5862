"""Counter-based random numbers: the n-th number of a stream is a function of (key, n), of nothing else.

NumPy's and PyTorch's generators promise their streams for one build and one device only. Training resumed
on another machine must see the same noise, so the integers come from splitmix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), which is a few lines and the same everywhere.

Keys may be arrays: every function then works on many streams at once, in a new last axis.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 0xFFFFFFFFFFFFFFFF


def splitmix64(values: Key) -> Key:
    """The output function of splitmix64 for each state, elementwise: a bijection of 64-bit integers."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def stream_key(*parts: int | NDArray[np.int64]) -> Key:
    """The key of the stream named by `parts`, for example (seed, purpose, step, position)."""
    state = np.zeros((), dtype=np.uint64)
    for part in parts:
        bits = np.uint64(part & _MASK) if isinstance(part, int) else part.astype(np.uint64)
        state = splitmix64(np.asarray(state ^ bits))
    return state


def random_bits(key: Key, count: int) -> Key:
    """The first `count` 64-bit integers of each stream: splitmix64 seeded with the key. Shape (*key, count)."""
    with np.errstate(over="ignore"):
        return splitmix64(key[..., None] + np.arange(count, dtype=np.uint64) * _GOLDEN)


def uniform(key: Key, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, shape (*key, count)."""
    return (random_bits(key, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: Key, count: int) -> NDArray[np.float32]:
    """Standard normal numbers by Box and Muller's method, two from every 64 random bits, shape (*key, count).

    32 bits for the radius reach 6.7 standard deviations, beyond what a float32 training run could notice.
    """
    bits = random_bits(key, (count + 1) // 2)
    # Shifted by half a step into (0, 1), so that the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)) + 0.5) * 2.0**-32))
    angle = (bits & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).astype(np.float32)
    return pairs.reshape(*key.shape, -1)[..., :count]


def permutation(key: Key, count: int) -> NDArray[np.int64]:
    """A permutation of range(count): the order of the stream's first `count` integers."""
    return np.argsort(random_bits(key, count), kind="stable")
