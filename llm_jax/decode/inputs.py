"""What generation is asked for, checked and as arrays: token ids, seeds, settings of each row."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm_jax.config import DecodeConfig
from llm_jax.decode.programs import Sampling
from llm_jax.ranges import Seed, check_value
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


def sampling(config: DecodeConfig, rows: int, seeds: Sequence[int] | None = None) -> Sampling:
    """The settings of a batch, as arrays.

    Args:
        config: the settings that all rows share.
        rows: number of rows.
        seeds: one for each row, from 0 to 2**64 - 1; None gives row i the seed
            ``config.seed + i``.

    Raises:
        ConfigError: the number of seeds is not the number of rows, or a seed is out of range.
    """
    if seeds is None:
        seeds = [config.seed + i for i in range(rows)]
    if len(seeds) != rows:
        raise ConfigError(f"{len(seeds)} seeds for {rows} prompts; give one each")
    halves = [_halves(row, seed) for row, seed in enumerate(seeds)]
    return Sampling(
        temperature=jnp.asarray(np.full((rows,), config.temperature, np.float32)),
        top_k=jnp.asarray(np.full((rows,), config.top_k, np.int32)),
        top_p=jnp.asarray(np.full((rows,), config.top_p, np.float32)),
        min_p=jnp.asarray(np.full((rows,), config.min_p, np.float32)),
        seed=jnp.asarray(np.array(halves, np.uint32)),
    )


def _halves(row: int, seed: int) -> tuple[int, int]:
    """The high and the low 32 bits."""
    check_value(f"the seed of row {row}", seed, Seed)
    return divmod(int(seed), 2**32)
