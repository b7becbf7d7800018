"""Token ids that decoding is given, checked and as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from llm_jax.sharding import batch_ways
from llm_jax.types import ConfigError


def checked_ids(ids: Sequence[int], name: str, vocabulary: int) -> np.ndarray:
    """Token ids as an array.

    Args:
        ids: one row of ids.
        name: of the row, for the error.
        vocabulary: V; the model has the ids 0 to V - 1.

    Returns:
        int32 [n].

    Raises:
        ConfigError: ``ids`` is no sequence of whole numbers, or has an id outside the vocabulary.
    """
    try:
        given = np.asarray(ids)
    except ValueError:
        # Raised for nested sequences that differ in length.
        given = np.zeros((0, 0))
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ConfigError(f"{name} is {str(ids)[:80]}; it must be a sequence of whole numbers")
    outside = np.flatnonzero((given < 0) | (given >= vocabulary))
    if outside.size:
        at = int(outside[0])
        raise ConfigError(
            f"{name} has {given[at]} at place {at}; this model has the ids 0 to {vocabulary - 1}"
        )
    return given.astype(np.int32)


def padded_rows(rows: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as tokens int32 [B, width], padded on the right, and their lengths int32 [B]."""
    tokens = np.zeros((len(rows), width), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def filled_rows(rows: Sequence[Sequence[int]], mesh: Mesh) -> list[Sequence[int]]:
    """The rows, and copies of the last one until their number divides over the mesh."""
    missing = -len(rows) % batch_ways(mesh)
    return [*rows, *[row for row in rows[-1:] for _ in range(missing)]]
