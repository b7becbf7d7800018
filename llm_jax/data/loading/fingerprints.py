"""Fingerprints of batches: what every host of a run must have read alike."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from llm_jax.data.loading.hashing import mix
from llm_jax.data.loading.leaves import leaves
from llm_jax.types import Batch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_fingerprints(batch: Batch, indices: np.ndarray) -> np.ndarray:
    """uint64 [B]: a hash of every array of each row, with the row's index in the global order.

    Their sum modulo 2**64 is the batch's fingerprint: it depends on where each row stands, and not
    on how they are spread over hosts.

    Args:
        batch: arrays [B, …].
        indices: [B], the global index of each row.
    """
    with np.errstate(over="ignore"):
        rows = mix(indices.astype(np.uint64) + _GOLDEN)
        for path, array in leaves(batch):
            words = _words(array)
            rows ^= mix(words @ _place_keys(words.shape[1]) + _path_key(path))
        return mix(rows)


def _words(array: np.ndarray) -> np.ndarray:
    """uint64 [B, n]: the bits of each number of a row."""
    rows = np.ascontiguousarray(array).reshape(len(array), -1)
    return rows.view(f"u{rows.dtype.itemsize}").astype(np.uint64)


def _place_keys(length: int) -> np.ndarray:
    """An odd number for each place of a row."""
    return mix(np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)


@functools.cache
def _path_key(path: str) -> np.uint64:
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
