"""The cache of a whole model: that of each layer, and the length of each row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.cross import CrossCache
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.key_value import KeyValueCache, Layout
from llm_jax.ops.cache.latent import LatentCache
from llm_jax.ops.cache.ring import Ring

SelfCache = KeyValueCache | LatentCache


class LayerCache(NamedTuple):
    """What one layer keeps: of its own tokens, and of an encoder's where there is one."""

    own: SelfCache
    cross: CrossCache | None = None


class Cache(NamedTuple):
    """The state of autoregressive decoding. Empty or filled it has one structure, so that one
    program serves both.

    Attributes:
        layers: one entry a layer, from the first to the last.
        length: int32 [B], tokens of each row; 0 in an empty cache.
        encoder_segments: int32 [B, S], segments of the encoder's tokens, 0 for padding; None for a
            model without an encoder.
    """

    layers: tuple[LayerCache, ...]
    length: Array
    encoder_segments: Array | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the keys and values."""
        return jax.tree.leaves(self.layers)[0].dtype

    def gather(self, rows: Array) -> Cache:
        """The cache whose row b is row ``rows[b]`` of this one, for beams. rows: int [B']."""
        layers = tuple(
            LayerCache(layer.own.gather(rows), layer.cross and layer.cross.gather(rows))
            for layer in self.layers
        )
        segments = self.encoder_segments
        if segments is not None:
            segments = jnp.take(segments, rows, axis=0)
        return Cache(layers, jnp.take(self.length, rows, axis=0), segments)

    def truncate(self, lengths: Array, *, most: int) -> Cache:
        """The cache with rows cut to ``lengths``, as if later tokens had never been written.

        Args:
            lengths: int [B]. A row that is not longer stays as it is.
            most: static. The caller makes sure that no row gets shorter by more tokens than this
                than it was after its latest call; with a ring, the tokens beyond are gone.

        Raises:
            ValueError: a ring keeps fewer tokens than needed (see ``ops.cache.ring``).
        """
        layers = tuple(
            LayerCache(layer.own.truncate(most), layer.cross and layer.cross.truncate(most))
            for layer in self.layers
        )
        return self._replace(layers=layers, length=jnp.minimum(self.length, lengths))

    @property
    def axes(self) -> Cache:
        """Logical axes in the place of each array."""
        layers = tuple(
            LayerCache(layer.own.axes, layer.cross and layer.cross.axes) for layer in self.layers
        )
        segments = None if self.encoder_segments is None else ("batch", None)
        return Cache(layers, ("batch",), segments)  # type: ignore[arg-type]


class Slots(NamedTuple):
    """How many tokens a cache is for.

    Attributes:
        rows: B.
        length: tokens of each row, at most.
        rollback: tokens that ``truncate`` may take back in layers with a window.
    """

    rows: int
    length: int
    rollback: int = 0

    def layout(self, window: int) -> tuple[Layout, int]:
        """The layout for a layer with this window (0 is none), and its number of slots: a ring
        where it is smaller than the row.
        """
        ring = Ring(window, self.rollback)
        if window and ring.slots < self.length:
            return ring, ring.slots
        return InOrder(), self.length


def key_value_cache(
    slots: Slots, kv_heads: int, widths: tuple[int, int], dtype: jnp.dtype, *, window: int = 0
) -> KeyValueCache:
    """An empty cache of one layer of attention. widths: of a key and of a value."""
    layout, length = slots.layout(window)
    keys, values = (jnp.zeros((slots.rows, kv_heads, length, width), dtype) for width in widths)
    return KeyValueCache(keys, values, layout)


def latent_cache(
    slots: Slots, latent_dim: int, rope_dim: int, dtype: jnp.dtype, *, window: int = 0
) -> LatentCache:
    """An empty cache of one layer of latent attention."""
    layout, length = slots.layout(window)
    latents = jnp.zeros((slots.rows, length, latent_dim), dtype)
    rotated = jnp.zeros((slots.rows, length, rope_dim), dtype)
    return LatentCache(latents, rotated, layout)


def cross_cache(
    rows: int, length: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> CrossCache:
    """An empty cache of one layer's attention to ``length`` tokens of an encoder."""
    shape = (rows, kv_heads, length, head_dim)
    return CrossCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
