"""Where to cut an order of tokens, without sorting the vocabulary.

A filter keeps the tokens before a threshold. The threshold is found by bisection of the bits of the
numbers: as many sums over the vocabulary as a number has bits, which takes a small part of the time
of a sort on every platform, and gives exactly one of the numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import vary_like, vary_together


def ordered_keys(x: Array) -> Array:
    """Integers in the order of the floats x; equal floats have equal integers."""
    kind = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # -0 and 0 are equal and differ in bits.
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
    bits = jax.lax.bitcast_convert_type(x, kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def threshold(keys: Array, weights: Array, target: Array) -> Array:
    """The largest t for which the weights of all keys of at least t sum to the target or more.

    It is one of the keys; or the smallest integer, where the weights of all keys do not reach the
    target.

    Args:
        keys: int [..., V].
        weights: int [..., V], at least 0, of which all sums are the same in any order.
        target: int [..., 1].

    Returns:
        int [..., 1].
    """
    bits = jnp.iinfo(keys.dtype).bits
    keys, weights, target = vary_together((keys, weights, target))
    highest = jnp.max(keys, axis=-1, keepdims=True)
    lowest = vary_like(jnp.full_like(highest, jnp.iinfo(keys.dtype).min), highest)

    def halve(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        # The upper middle, in a form that does not overflow.
        middle = (low | high) - ((low ^ high) >> 1)
        counted = jnp.where(keys >= middle, weights, jnp.zeros_like(weights))
        reached = (jnp.sum(counted, axis=-1, keepdims=True, dtype=weights.dtype) >= target) | (
            middle == low
        )
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    return jax.lax.fori_loop(0, bits, halve, (lowest, highest))[0]


def largest(x: Array, number: int) -> tuple[Array, Array]:
    """The largest of each row in falling order, the first among equals, and their places.

    [..., V] -> two arrays [..., n], with n the smaller of ``number`` and V.
    """
    # -0 and 0 are equal, though not to top_k.
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
    values, places = jax.lax.top_k(x, min(number, x.shape[-1]))
    # Without barriers XLA's CPU backend may take a slice of the result into what it comes from, and
    # sort the whole vocabulary for it, which takes a hundred times as long. With one barrier for
    # both results it may abort.
    return jax.lax.optimization_barrier(values), jax.lax.optimization_barrier(places)


def first_of(marked: Array, count: Array) -> Array:
    """The first ``count`` [..., 1] of the places that are marked, bool [..., V], by place."""
    return marked & (jnp.cumsum(marked, axis=-1, dtype=jnp.int32) <= count)
