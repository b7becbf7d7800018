"""Choice of one token for each row of logits [B, V]: the most likely one, or a random draw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically

ALL_BANNED = -2
"""What ``categorical`` draws for a row of which no token is left."""

_BLOCK = 256


def greedy(logits: Array) -> Array:
    """The most likely token of each row, the lowest id among equals, or the first NaN.

    [..., V] -> int32 [...].
    """
    # Two plain reductions, which XLA's CPU backend vectorizes better than argmax. The barrier makes
    # both read the same logits, computed once.
    logits = jax.lax.optimization_barrier(logits)
    V = logits.shape[-1]
    ids = jnp.expand_dims(jnp.arange(V, dtype=jnp.int32), range(logits.ndim - 1))
    best = (logits == jnp.max(logits, axis=-1, keepdims=True)) | jnp.isnan(logits)
    return jnp.min(jnp.where(best, ids, V), axis=-1)


def row_keys(seeds: Array, positions: Array) -> Array:
    """One key per row from its seed and the position it draws.

    A row's text thus does not depend on the batch around it.

    Args:
        seeds: int [B], or uint32 [B, 2] with the high and the low half of 64 bits. A high half of 0
            gives the keys of the low half alone.
        positions: int [B].

    Raises:
        ValueError: shapes disagree.
    """
    fits = seeds.shape in ((*positions.shape,), (*positions.shape, 2))
    if positions.ndim != 1 or not fits:
        raise ValueError(
            f"row_keys got seeds {seeds.shape} and positions {positions.shape}; they must be [B] or"
            " [B, 2], and [B]"
        )

    def key(seed: Array, position: Array) -> Array:
        if seed.ndim == 0:
            return jax.random.fold_in(jax.random.key(seed), position)
        high = seed[0]
        low_key = jax.random.key(seed[1])
        both = jnp.where(high == 0, low_key, jax.random.fold_in(low_key, high))
        return jax.random.fold_in(both, position)

    def run(seeds: Array, positions: Array) -> Array:
        return jax.vmap(key)(seeds, positions)

    return place_automatically(run, explicit_spec(positions), seeds, positions)


def categorical(keys: Array, logits: Array) -> Array:
    """Draws one token for each row.

    Args:
        keys: [B], the key of each row, as ``row_keys`` returns them; or one key for all.
        logits: [B, V], or [V] for one key.

    Returns:
        int32 [B], or []; ``ALL_BANNED`` for a row in which every logit is -inf.

    Raises:
        ValueError: the keys are not one, or one for each row.
    """
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    rows = keys.shape if typed else keys.shape[:-1]
    if rows not in ((), logits.shape[:-1]) or len(rows) > 1:
        raise ValueError(
            f"categorical got keys {keys.shape} for logits {logits.shape}; give one key, or one for"
            " each row"
        )

    def run(keys: Array, logits: Array) -> Array:
        shape = (*logits.shape[:-1], 2)
        if rows == ():
            uniform = jax.random.uniform(keys, shape, logits.dtype)
        else:
            uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,), logits.dtype))(keys)
        banned = jnp.max(logits, axis=-1) == -jnp.inf
        return jnp.where(banned, ALL_BANNED, _at_uniform(logits, uniform))

    return place_automatically(run, explicit_spec(logits, logits.ndim - 1), keys, logits)


def _at_uniform(logits: Array, uniform: Array) -> Array:
    """int32 [...]: the token of logits [..., V] that two uniform numbers [..., 2] choose.

    The first chooses a block of tokens by the blocks' masses, the second a token of it. One random
    number for each token, of which the largest sum with its logit wins, takes many times longer.
    """
    V = logits.shape[-1]
    blocks = -(-V // _BLOCK)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # Also where the largest is infinite.
    mass = jnp.where(logits == largest, 1, jnp.exp(logits - largest))
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * _BLOCK - V)]
    mass = jnp.pad(mass, padding).reshape(*logits.shape[:-1], blocks, _BLOCK)
    block = _first_above(jnp.sum(mass, axis=-1), uniform[..., 0])
    of_block = jnp.take_along_axis(mass, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _first_above(of_block, uniform[..., 1])


def _first_above(mass: Array, uniform: Array) -> Array:
    """int32 [...]: the first place of masses [..., n] up to which more than this share has come."""
    sums = jnp.cumsum(mass, axis=-1)
    target = uniform[..., None] * sums[..., -1:]
    place = jnp.sum(sums <= target, axis=-1, dtype=jnp.int32)
    places = jnp.arange(mass.shape[-1], dtype=jnp.int32)
    # A product that is rounded up to the whole passes the last place that has a mass.
    last = jnp.max(jnp.where(mass > 0, jnp.broadcast_to(places, mass.shape), 0), axis=-1)
    return jnp.minimum(place, last)
