"""One vector for each row of hidden states."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def mean_pool(hidden: Array, mask: Array) -> Array:
    """The mean over marked tokens (Reimers & Gurevych 2019, section 3), computed in float32.

    Args:
        hidden: [B, T, D].
        mask: bool [B, T]; padding may be left, right or absent.

    Returns:
        [B, D] in hidden's dtype, 0 where no token is marked.
    """
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), weights)
    return (total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)).astype(hidden.dtype)


def first_token(hidden: Array, mask: Array) -> Array:
    """The first marked token of each row. hidden: [B, T, D], mask: bool [B, T] -> [B, D]."""
    return jnp.take_along_axis(hidden, jnp.argmax(mask, axis=1)[:, None, None], axis=1)[:, 0]
