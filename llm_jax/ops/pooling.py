"""One vector for each row of hidden states."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.precision import widened


def mean_pool(hidden: Array, mask: Array) -> Array:
    """The mean over marked tokens (Reimers & Gurevych 2019, section 3).

    Args:
        hidden: [B, T, D].
        mask: bool [B, T]; padding may be left, right or absent. Numbers are weights of the tokens.

    Returns:
        [B, D] in hidden's dtype, 0 where no token is marked. Sums are kept in float32, or in
        float64 for arrays of it.

    Raises:
        ValueError: the mask is not [B, T].
    """
    _check(hidden, mask)
    wide = widened(hidden)
    weights = mask.astype(wide.dtype)
    total = jnp.einsum("btd,bt->bd", wide, weights)
    count = jnp.sum(weights, axis=1, keepdims=True)
    return (total / jnp.where(count == 0, 1.0, count)).astype(hidden.dtype)


def first_token(hidden: Array, mask: Array) -> Array:
    """The first marked token of each row.

    Args:
        hidden: [B, T, D].
        mask: bool [B, T].

    Returns:
        [B, D], of the first token of the row where none is marked.

    Raises:
        ValueError: the mask is not [B, T].
    """
    _check(hidden, mask)
    return _picked(hidden, jnp.argmax(mask, axis=1))


def last_token(hidden: Array, mask: Array) -> Array:
    """The last marked token of each row.

    Args:
        hidden: [B, T, D].
        mask: bool [B, T].

    Returns:
        [B, D], of the last token of the row where none is marked.

    Raises:
        ValueError: the mask is not [B, T].
    """
    _check(hidden, mask)
    return _picked(hidden, mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1))


def _picked(hidden: Array, places: Array) -> Array:
    """The token of each row at its place, [B, D]. places: int [B]."""
    marked = jnp.arange(hidden.shape[1])[None, :] == places[:, None]
    # One product, which differentiates and lies on any mesh as a sum does.
    picked = jnp.where(marked[:, :, None], hidden, jnp.zeros_like(hidden))
    return jnp.sum(picked, axis=1)


def _check(hidden: Array, mask: Array) -> None:
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"pooling got hidden {hidden.shape} and mask {mask.shape}; they must be [B, T, D] and"
            " [B, T]"
        )
