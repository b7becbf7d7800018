"""What generation is asked for, checked and as arrays: token ids, seeds, settings of each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_jax.config import DecodeConfig
from llm_jax.decode.programs import Sampling
from llm_jax.ranges import Seed, check_value
from llm_jax.types import ConfigError


def checked_ids(ids: Sequence[int], name: str, vocabulary: int) -> np.ndarray:
    """``ids`` as int32 [n]. ConfigError, with ``name`` and the place, for what is no id of a model
    of ``vocabulary`` ids.
    """
    try:
        given = np.asarray(ids)
    except ValueError:
        # Of sequences in it that differ in length.
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


def sampling(config: DecodeConfig, rows: int, seeds: Sequence[int] | None = None) -> Sampling:
    """The settings of ``rows`` rows; row i draws with the seed ``config.seed + i`` if none are
    given.

    Raises ConfigError for another number of seeds, and for one that has not 64 bits.
    """
    seeds = [config.seed + i for i in range(rows)] if seeds is None else seeds
    if len(seeds) != rows:
        raise ConfigError(f"{len(seeds)} seeds for {rows} prompts; give one each")
    halves = [_halves(row, seed) for row, seed in enumerate(seeds)]
    return Sampling(
        temperature=np.full((rows,), config.temperature, np.float32),
        top_k=np.full((rows,), config.top_k, np.int32),
        top_p=np.full((rows,), config.top_p, np.float32),
        min_p=np.full((rows,), config.min_p, np.float32),
        seed=np.array(halves, np.uint32),
    )


def _halves(row: int, seed: int) -> tuple[int, int]:
    """The high and the low 32 bits."""
    check_value(f"the seed of row {row}", seed, Seed)
    return divmod(int(seed), 2**32)
