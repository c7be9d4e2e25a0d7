"""Numbers that look random and are a function of (key, index): any minute at once, no state."""

from __future__ import annotations

import hashlib
from typing import cast

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_OCTAVES = 20  # the slowest swings take 2**19 minutes, about a year


def key_of(*parts: object) -> int:
    """A 64-bit key for a stream of numbers."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes(key: int, index: NDArray[np.int64]) -> Hashes:
    """One well-mixed 64-bit number an index (the splitmix64 finalizer)."""
    x = index.astype(np.uint64) * _GOLDEN + np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def uniform(key: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform in [0, 1)."""
    return (hashes(key, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bell(key: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Roughly normal with variance 1: the sum of four 16-bit uniforms."""
    words = hashes(key, index).view(np.uint16).reshape(-1, 4)
    total = words.sum(axis=1, dtype=np.int64)
    return cast("NDArray[np.float64]", (total / 65535.0 - 2.0) * np.sqrt(3.0))


def wander(key: int, local_key: int, first: int, last: int, *, sigma: float) -> NDArray[np.float64]:
    """A path that moves about ``sigma * sqrt(t)`` in t steps, at the indexes first … last.

    It is a sum of noises on ever coarser grids, each interpolated linearly. Steps up to an hour
    come from ``local_key``, the slower ones from ``key``: two paths that share a key stay together.
    """
    index = np.arange(first, last + 1, dtype=np.int64)
    path = np.zeros(len(index))
    for octave in range(_OCTAVES):
        source = key if octave > 5 else local_key
        grid = np.arange(first >> octave, (last >> octave) + 2, dtype=np.int64)
        values = bell(source ^ (octave * 0x5851F42D4C957F2D & 0xFFFFFFFFFFFFFFFF), grid)
        amplitude = 0.5 * sigma * 2.0 ** (octave / 2)
        path += amplitude * np.interp(index, grid << octave, values)
    return path
