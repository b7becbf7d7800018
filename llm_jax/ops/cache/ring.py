"""The layout of a cache for a sliding window: the slots are a ring of the latest tokens of a row.

A ring of R slots holds the token at position p in slot p modulo R, and thus the latest R tokens.
A query of a layer with a window of W sees the W positions up to its own, so that R = W is enough to
go on, whatever the length of the row. Each slot beyond W allows ``truncate`` to take one more token
back, since the token that it would have overwritten is then still there.

A call of one token a row writes it first and then reads the slots. A call of more tokens may
overwrite what its own first queries see: these read the slots as they were before the call, and
after them the call's tokens. So a chunk may have any number of tokens, also more than R.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import along_axis, write_slice

# Position of a key that is none: after every query, so that a causal mask hides it.
EMPTY = 2**31 - 1


@dataclass(frozen=True)
class Ring:
    """Slot s holds the latest token whose position modulo the number of slots is s.

    window: positions that a query sees, its own included; there are at least as many slots.
    rollback: tokens that may be taken back; the slots beyond the window.
    """

    window: int
    rollback: int = 0

    @property
    def slots(self) -> int:
        return self.window + self.rollback

    def positions(self, chunk: Chunk, slots: int) -> Array:
        """int32 [B, slots, or slots + T]: positions of the keys that ``write`` gives back, for a
        call that does not begin its rows. ``EMPTY`` where there is no token.
        """
        if chunk.width == 1:
            return _held(chunk.start + 1, slots)
        at = jnp.arange(chunk.width)[None, :]
        of_chunk = jnp.where(at < chunk.count[:, None], chunk.start[:, None] + at, EMPTY)
        return jnp.concatenate([_held(chunk.start, slots), of_chunk], axis=1)

    def write(self, slots: Array, new: Array, chunk: Chunk, axis: int) -> tuple[Array, Array]:
        """``slots`` with the latest tokens of a chunk written, and what the chunk's queries read.

        Args:
            slots: [B, …, R, …].
            new: [B, …, T, …], of the chunk's tokens.
            chunk: the call. Padding is not written, except by a call of one token a row, which
                writes it where no later query looks.
            axis: of the slots, at least 1.

        Returns:
            The written slots, and what is to read: ``new`` if the call begins its rows; for one
            token a row the written slots; else the slots as they were and ``new`` after them.
        """
        new = new.astype(slots.dtype)
        if chunk.width == 1 and not chunk.begin:
            written = write_slice(slots, new, chunk.start % slots.shape[axis], axis)
            return written, written
        # As in ``InOrder.write``, rows that begin do not keep old content.
        before = jnp.zeros_like(slots) if chunk.begin else slots
        written = jax.vmap(partial(_write_row, axis=axis - 1))(
            before, new, _held(chunk.end, slots.shape[axis]), chunk.start
        )
        return written, new if chunk.begin else jnp.concatenate([slots, new], axis=axis)

    def check_rollback(self, most: int) -> None:
        """Raises ValueError if ``most`` tokens cannot be taken back."""
        if most > self.rollback:
            raise ValueError(
                f"up to {most} tokens are to be taken back, and a ring for a window of"
                f" {self.window} keeps {self.rollback} more; make the cache with rollback={most}"
            )


def _held(length: Array, slots: int) -> Array:
    """int32 [B, slots]: position of the token in each slot of rows of ``length`` [B] tokens, or
    ``EMPTY``.
    """
    last = length[:, None] - 1
    position = last - (last - jnp.arange(slots)[None, :]) % slots
    return jnp.where(position >= 0, position, EMPTY)


def _write_row(slots: Array, new: Array, held: Array, start: Array, axis: int) -> Array:
    """``slots`` of one row with the tokens from position ``start`` on that are among the ``held``
    [R] after the call.
    """
    token = held - start
    taken = jnp.take(new, jnp.clip(token, 0, new.shape[axis] - 1), axis=axis)
    written = along_axis((token >= 0) & (held != EMPTY), axis, slots.ndim)
    return jnp.where(written, taken, slots)
