"""Numbers that look random and are pure functions of what they belong to: no generator whose state
would have to be saved.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(seed: int, indices: np.ndarray) -> np.ndarray:
    """uint64 [B]: of each row's number in a run with this seed."""
    with np.errstate(over="ignore"):
        start = mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
        return mix(start ^ mix(indices.astype(np.uint64) * _GOLDEN + np.uint64(1)))


def draws(keys: np.ndarray, stream: int, count: int) -> np.ndarray:
    """float64 [B, count], uniform in [0, 1): splitmix64 from each key on; streams 0, 1, 2, … are
    apart.
    """
    with np.errstate(over="ignore"):
        states = (
            mix(keys ^ mix(np.array([stream + 1], np.uint64) * _GOLDEN))[:, None]
            + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        )
        return (mix(states) >> np.uint64(11)) * 2.0**-53
