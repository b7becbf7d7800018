"""The cache of one recurrent layer: the state after each row's last token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.recurrent import LstmState


class RecurrentCache(NamedTuple):
    """What one layer of long short-term memory keeps of the rows that it has read. It has the same
    size whatever their length.

    Attributes:
        hidden: [B, F], in the type of activations.
        cell: [B, F], at least float32.
    """

    hidden: Array
    cell: Array

    def state(self, chunk: Chunk) -> LstmState | None:
        """The state that a call begins with; None is 0, where it begins its rows."""
        return None if chunk.begin else LstmState(self.hidden, self.cell)

    def written(self, state: LstmState) -> RecurrentCache:
        """The cache after a call that ends with ``state``, in the same types."""
        return RecurrentCache(
            state.hidden.astype(self.hidden.dtype), state.cell.astype(self.cell.dtype)
        )

    def positions(self, chunk: Chunk) -> None:
        """None: there are no keys, and no token has a place of its own."""

    def gather(self, rows: Array) -> RecurrentCache:
        """The cache whose row b is row ``rows[b]`` of this one. rows: int [B']."""
        return jax.tree.map(lambda a: jnp.take(a, rows, axis=0), self)

    def truncate(self, most: int) -> RecurrentCache:
        """The same, where no token is taken back.

        Raises:
            ValueError: ``most`` is not 0; the state of earlier tokens is gone.
        """
        if most:
            raise ValueError(
                f"up to {most} tokens are to be taken back, and a recurrent layer keeps the state"
                " after the last token alone; read the row again from its beginning"
            )
        return self

    @property
    def axes(self) -> RecurrentCache:
        """Logical axes in the place of each array."""
        names = ("batch", "act_mlp")
        return RecurrentCache(names, names)  # type: ignore[arg-type]


def recurrent_cache(rows: int, width: int, dtype: jnp.dtype) -> RecurrentCache:
    """An empty cache of one layer.

    Args:
        rows: B.
        width: F.
        dtype: of activations.
    """
    hidden = jnp.zeros((rows, width), dtype)
    return RecurrentCache(hidden, hidden.astype(jnp.promote_types(dtype, jnp.float32)))
