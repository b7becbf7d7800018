"""Sums over the vocabulary that do not depend on the rows beside.

XLA's CPU backend may add the numbers of a row in another order where a batch has another number of
rows, so that a row's last bits differ. These functions say the order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.precision import widened


def row_sum(x: Array) -> Array:
    """The sum of each row by halves. [..., V] -> [..., 1]."""
    width = x.shape[-1]
    while width > 1:
        half = -(-width // 2)
        missing = 2 * half - width
        padding = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
        x = x[..., :half] + jnp.pad(x[..., half:], padding)
        width = half
    return x


def log_softmax(logits: Array) -> Array:
    """Log-probabilities [..., V], at least float32; NaN for a row that is -inf throughout."""
    scores = widened(logits)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    scores = scores - largest
    return scores - jnp.log(row_sum(jnp.exp(scores)))


def softmax(logits: Array) -> Array:
    """Probabilities [..., V], at least float32; NaN for a row that is -inf throughout."""
    scores = widened(logits)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    exponentials = jnp.exp(scores - largest)
    return exponentials / row_sum(exponentials)


def in_parts(probabilities: Array) -> Array:
    """Probabilities as whole numbers of equal parts of 1: 2 ** -30, or 2 ** -52 of float64.

    Whole numbers have the same sum in any order.
    """
    if probabilities.dtype == jnp.float64:
        return jnp.round(probabilities * 2.0**52).astype(jnp.int64)
    return jnp.round(probabilities * 2.0**30).astype(jnp.int32)
