"""Writing to a cache that is a plain array, in anybody's decoding loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import write_counted


def write_cache(slots: Array, new: Array, start: Array | int, *, axis: int = 1) -> Array:
    """``slots`` with new tokens written from each row's ``start`` on.

    Args:
        slots: [B, …, S, …], such as keys [B, S, K, H] or latents [B, S, C].
        new: [B, …, T, …], the same but for T along ``axis``. It is cast to the type of ``slots``.
        start: int [B] or a number, tokens that each row has. The caller makes sure that
            ``start + T <= S``: where ``start`` is a traced value this cannot be checked, and tokens
            beyond the last slot are not written.
        axis: of S, at least 1.

    Returns:
        [B, …, S, …], a new array.

    Raises:
        ValueError: shapes disagree, or tokens would go beyond the last slot.
    """
    _check_shapes(slots, new, axis)
    T = new.shape[axis]
    S = slots.shape[axis]
    if not isinstance(start, jax.core.Tracer):
        _check_room(np.asarray(start), T, S)
    begin = jnp.asarray(start, jnp.int32)
    if begin.ndim > 1 or (begin.ndim == 1 and begin.shape != slots.shape[:1]):
        raise ValueError(
            f"start has shape {begin.shape}; expected a number, or one for each of the"
            f" {slots.shape[0]} rows"
        )
    begin = jnp.broadcast_to(begin, slots.shape[:1])
    chunk = Chunk(begin, jnp.full_like(begin, T), T)
    return write_counted(slots, new, chunk, axis)


def _check_shapes(slots: Array, new: Array, axis: int) -> None:
    if not 1 <= axis < slots.ndim:
        raise ValueError(f"axis is {axis}; expected 1 to {slots.ndim - 1} for slots {slots.shape}")
    others = [size for i, size in enumerate(slots.shape) if i != axis]
    of_new = [size for i, size in enumerate(new.shape) if i != axis]
    if new.ndim != slots.ndim or of_new != others or new.shape[axis] > slots.shape[axis]:
        raise ValueError(
            f"new tokens {new.shape} do not fit slots {slots.shape}: all axes but {axis} must be"
            " equal, and there must be at least as many slots as new tokens"
        )


def _check_room(start: np.ndarray, tokens: int, slots: int) -> None:
    outside = start[(start < 0) | (start + tokens > slots)]
    if outside.size:
        raise ValueError(
            f"start is {outside.flat[0]}, and {tokens} tokens from there do not fit {slots} slots;"
            " make the cache longer"
        )
