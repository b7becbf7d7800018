"""The settings of samplers as arrays that broadcast over logits."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

# A setting of all rows, or one for each.
Setting = Array | float


def per_row(name: str, value: Setting, logits: Array) -> Array:
    """A setting as [..., 1], which broadcasts over logits [..., V].

    Raises:
        ValueError: it is neither one number nor one for each row.
    """
    array = jnp.asarray(value)
    rows = logits.shape[:-1]
    if array.shape not in ((), rows):
        raise ValueError(
            f"sampling setting {name} has shape {array.shape} for logits {logits.shape}; give one"
            f" number, or one for each row, {rows}"
        )
    return jnp.broadcast_to(array, rows)[..., None]


def whole_per_row(name: str, value: Setting, logits: Array) -> Array:
    """``per_row`` of a setting of whole numbers.

    Raises:
        ValueError: as there, or it has another type.
    """
    array = per_row(name, value, logits)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"sampling setting {name} is {array.dtype}; it must be an integer")
    return array


def token_ids(logits: Array) -> Array:
    """The ids 0 to V - 1 in the shape [..., V], with axes of 1."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.expand_dims(ids, range(logits.ndim - 1))


def is_token(logits: Array, tokens: Array) -> Array:
    """bool [B, V]: the tokens [B, m] of each row; those below 0 are none.

    Raises:
        ValueError: the shapes disagree.
    """
    if logits.ndim != 2 or tokens.ndim != 2 or tokens.shape[0] != logits.shape[0]:
        raise ValueError(
            f"logits have shape {logits.shape} and tokens {tokens.shape}; expected [B, V] and"
            " [B, m]"
        )
    return marked(tokens, tokens >= 0, logits.shape[1])


def marked(tokens: Array, counted: Array, vocab_size: int) -> Array:
    """bool [B, V]: the tokens [B, m] of each row that are ``counted`` [B, m]."""
    rows = jnp.expand_dims(jnp.arange(tokens.shape[0]), 1)
    # A token that does not count is written past the end, which drops it.
    places = jnp.where(counted, tokens, vocab_size)
    none = jnp.zeros((tokens.shape[0], vocab_size), bool)
    return none.at[rows, places].set(True, mode="drop")
