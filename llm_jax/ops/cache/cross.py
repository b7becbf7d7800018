"""The cache of one layer's attention to what an encoder read."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class CrossCache(NamedTuple):
    """Keys and values of an encoder's output, made where the rows begin and only read afterwards.

    Attributes:
        keys: [B, K, S, H], S tokens of the encoder.
        values: [B, K, S, H'].
    """

    keys: Array
    values: Array

    def write(self, k: Array, v: Array) -> CrossCache:
        """The cache of new rows, with k [B, S', K, H] and v [B, S', K, H'] in its first slots."""
        return CrossCache(_at_begin(self.keys, k), _at_begin(self.values, v))

    def read(self) -> tuple[Array, Array]:
        """Keys [B, S, K, H] and values [B, S, K, H']."""
        return self.keys.swapaxes(1, 2), self.values.swapaxes(1, 2)

    def gather(self, rows: Array) -> CrossCache:
        """The cache whose row b is row ``rows[b]`` of this one. rows: int [B']."""
        return jax.tree.map(lambda a: jnp.take(a, rows, axis=0), self)

    def truncate(self, most: int) -> CrossCache:
        """The same: a decoder's tokens, which are taken back, are not in it."""
        return self

    @property
    def axes(self) -> CrossCache:
        """Logical axes in the place of each array."""
        names = ("batch", "act_kv_heads", None, None)
        return CrossCache(names, names)  # type: ignore[arg-type]


def _at_begin(slots: Array, new: Array) -> Array:
    if new.shape[1] > slots.shape[2]:
        raise ValueError(
            f"an encoder read rows of {new.shape[1]} tokens, and the cache has {slots.shape[2]}"
            f" slots for them; make it with encoder_length={new.shape[1]}"
        )
    new = new.swapaxes(1, 2).astype(slots.dtype)
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(slots), new, 0, 2)
