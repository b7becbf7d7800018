"""Choice of one token for each row of logits [B, V]: the most likely one, or a random draw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def greedy(logits: Array) -> Array:
    """The most likely token of each row, the lowest id among equals, or the first NaN.

    [B, V] -> int32 [B].
    """
    # Two plain reductions, which XLA's CPU backend vectorizes better than argmax. The barrier makes
    # both read the same logits, computed once.
    logits = jax.lax.optimization_barrier(logits)
    V = logits.shape[-1]
    best = (logits == jnp.max(logits, axis=-1, keepdims=True)) | jnp.isnan(logits)
    return jnp.min(jnp.where(best, jnp.arange(V, dtype=jnp.int32)[None, :], V), axis=-1)


def row_keys(seeds: Array, positions: Array) -> Array:
    """One key per row from its seed and the position it draws.

    A row's text thus does not depend on the batch around it.

    Args:
        seeds: int [B], or uint32 [B, 2] with the high and the low half of 64 bits. A high half of 0
            gives the keys of the low half alone.
        positions: int [B].
    """

    def key(seed: Array, position: Array) -> Array:
        if seed.ndim == 0:
            return jax.random.fold_in(jax.random.key(seed), position)
        high = seed[0]
        low_key = jax.random.key(seed[1])
        both = jnp.where(high == 0, low_key, jax.random.fold_in(low_key, high))
        return jax.random.fold_in(both, position)

    return jax.vmap(key)(seeds, positions)


def categorical(keys: Array, logits: Array) -> Array:
    """Draws one token for each row with the row's key.

    Args:
        keys: [B], as ``row_keys`` returns them.
        logits: [B, V].

    Returns:
        int32 [B].
    """
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
