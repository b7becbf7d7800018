"""The layout of a cache that keeps every token: slot s of a row holds the token at position s."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cpu import write_row_slice


@dataclass(frozen=True)
class InOrder:
    """Slot s holds the token at position s; slots at the row's length and later are free.

    The caller keeps the length of each row within the slots.
    """

    def positions(self, chunk: Chunk, slots: int) -> None:
        """None: the keys that ``write`` gives back are at positions 0, 1, 2, …"""

    def write(self, slots: Array, new: Array, chunk: Chunk, axis: int) -> tuple[Array, Array]:
        """``slots`` with the tokens of a chunk written, and what the chunk's queries read.

        Args:
            slots: [B, …, S, …].
            new: [B, …, T, …], of the chunk's tokens.
            chunk: the call. Padding is not written, except by a call of one token a row or one
                that begins its rows, which write it to free slots.
            axis: of the slots, at least 1.

        Returns:
            The written slots, and all of them to read, or ``new`` if the call begins its rows.

        Raises:
            ValueError: the call has more tokens a row than there are slots.
        """
        size = slots.shape[axis]
        if chunk.width > size:
            raise ValueError(
                f"a call of {chunk.width} tokens a row does not fit a cache of {size} slots; make"
                " the cache longer, or give fewer tokens a call"
            )
        if chunk.begin:
            new = new.astype(slots.dtype)
            # Not over the old content: a NaN there would reach queries, though with a weight of 0.
            free = jnp.zeros_like(slots)
            return jax.lax.dynamic_update_slice_in_dim(free, new, 0, axis), new
        if chunk.width == 1:
            written = write_slice(slots, new, chunk.start, axis)
        else:
            written = write_counted(slots, new, chunk, axis)
        return written, written

    def check_rollback(self, most: int) -> None:
        """Any number of tokens can be taken back."""


def write_slice(slots: Array, new: Array, start: Array, axis: int) -> Array:
    """``slots`` [B, …, S, …] with ``new`` [B, …, T, …] written along ``axis`` (at least 1) at each
    row's ``start`` [B].

    The caller makes sure that ``start + T <= S``: past the end XLA shifts the slice back.
    """
    new = new.astype(slots.dtype)
    if slots.shape[0] > 1:
        return jax.vmap(lambda row, n, s: jax.lax.dynamic_update_slice_in_dim(row, n, s, axis - 1))(
            slots, new, start
        )
    return write_row_slice(slots, new, start[0], axis)


def write_counted(slots: Array, new: Array, chunk: Chunk, axis: int) -> Array:
    """The first ``chunk.count`` tokens of each row written; all other slots stay as they are."""
    row = partial(_write_counted_row, axis=axis - 1)
    return jax.vmap(row)(slots, new.astype(slots.dtype), chunk.start, chunk.count)


def _write_counted_row(slots: Array, new: Array, start: Array, count: Array, axis: int) -> Array:
    width = new.shape[axis]
    # A slice that ends with the slots begins before ``start``: its first slots keep their content.
    first = jnp.minimum(start, slots.shape[axis] - width)
    token = jnp.arange(width) - (start - first)
    tokens = jnp.take(new, jnp.clip(token, 0, width - 1), axis=axis)
    before = jax.lax.dynamic_slice_in_dim(slots, first, width, axis)
    written = along_axis((token >= 0) & (token < count), axis, slots.ndim)
    update = jnp.where(written, tokens, before)
    return jax.lax.dynamic_update_slice_in_dim(slots, update, first, axis)


def along_axis(x: Array, axis: int, ndim: int) -> Array:
    """A vector as an array of ``ndim`` axes that broadcasts along all but ``axis``."""
    return jnp.expand_dims(x, [other for other in range(ndim) if other != axis])
