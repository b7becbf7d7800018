"""The cache of one layer of attention: keys and values of each head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.ring import Ring

Layout = InOrder | Ring
_SLOTS = 2


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=["layout"])
@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of one layer, in the axes in which a decoding step multiplies them.

    Attributes:
        keys: [B, K, S, H].
        values: [B, K, S, H'], H' the width of values.
        layout: static, which token is in which of the S slots.
    """

    keys: Array
    values: Array
    layout: Layout

    @property
    def slots(self) -> int:
        """S."""
        return self.keys.shape[_SLOTS]

    def positions(self, chunk: Chunk) -> Array | None:
        """Positions of the keys that ``write`` gives back; None if they are 0, 1, 2, …"""
        return self.layout.positions(chunk, self.slots)

    def write(self, chunk: Chunk, k: Array, v: Array) -> tuple[KeyValueCache, Array, Array]:
        """The cache with a chunk written, and the keys and values that its queries attend to.

        Args:
            chunk: the call.
            k: [B, T, K, H], of the chunk's tokens.
            v: [B, T, K, H'].

        Returns:
            The written cache, keys [B, S', K, H] and values [B, S', K, H'].
        """
        keys, k_read = self.layout.write(self.keys, _swapped(k), chunk, _SLOTS)
        values, v_read = self.layout.write(self.values, _swapped(v), chunk, _SLOTS)
        written = replace(self, keys=keys, values=values)
        if chunk.begin:
            return written, k, v
        return written, _swapped(k_read).astype(k.dtype), _swapped(v_read).astype(v.dtype)

    def gather(self, rows: Array) -> KeyValueCache:
        """The cache whose row b is row ``rows[b]`` of this one. rows: int [B']."""
        return jax.tree.map(lambda a: jnp.take(a, rows, axis=0), self)

    def truncate(self, most: int) -> KeyValueCache:
        """The cache after up to ``most`` tokens of each row were taken back: what follows is
        written over them.

        Raises:
            ValueError: a ring does not keep what queries would see then.
        """
        self.layout.check_rollback(most)
        return self

    @property
    def axes(self) -> KeyValueCache:
        """Logical axes in the place of each array."""
        names = ("batch", "act_kv_heads", None, None)
        return replace(self, keys=names, values=names)  # type: ignore[arg-type]


def _swapped(x: Array) -> Array:
    """[B, S, K, H] as [B, K, S, H], or the reverse."""
    return x.swapaxes(1, _SLOTS)
