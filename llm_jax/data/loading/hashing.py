"""Pseudorandom numbers as pure functions of seed and row, without a generator's state to save."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), uint64 to uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(seed: int, indices: np.ndarray) -> np.ndarray:
    """A key for each row index of a run with this seed, uint64 [B]."""
    with np.errstate(over="ignore"):
        start = mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
        return mix(start ^ mix(indices.astype(np.uint64) * _GOLDEN + np.uint64(1)))


def draws(keys: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) by splitmix64, float64 [B, count].

    Args:
        keys: uint64 [B], as ``row_keys`` returns them.
        stream: 0, 1, 2, …; other streams of the same key are independent.
        count: numbers for each key.
    """
    with np.errstate(over="ignore"):
        stream_key = mix(np.array([stream + 1], np.uint64) * _GOLDEN)
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        states = mix(keys ^ stream_key)[:, None] + steps
        return (mix(states) >> np.uint64(11)) * 2.0**-53
