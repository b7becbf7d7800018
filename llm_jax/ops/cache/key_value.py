"""The cache of one layer of attention: keys and values of each head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.attention import Options, attention
from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.paged import Paged
from llm_jax.ops.cache.quantized import (
    Quantized,
    Vectors,
    as_floats,
    as_stored,
    quantized_attention,
    vector_axes,
)
from llm_jax.ops.cache.ring import Ring
from llm_jax.ops.masks import Mask

Layout = InOrder | Ring
_SLOTS = 2


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=["layout"])
@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of one layer, in the axes in which a decoding step multiplies them.

    Attributes:
        keys: [B, K, S, H], floats or int8 (``ops.cache.quantized``).
        values: [B, K, S, H'], H' the width of values.
        layout: static, which token is in which of the S slots.
    """

    keys: Vectors
    values: Vectors
    layout: Layout

    @property
    def slots(self) -> int:
        """S."""
        return jax.tree.leaves(self.keys)[0].shape[_SLOTS]

    def slots_read(self, chunk: Chunk) -> int:
        """How many keys ``write`` gives back where ``positions`` is None."""
        return self.slots

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
            The written cache, keys [B, S', K, H] and values [B, S', K, H']. In int8 they are what
            is left of them, also those of the chunk: how a prompt is cut into calls changes
            nothing.
        """
        written, keys, values = self._written(chunk, k, v)
        if chunk.begin and not isinstance(keys, Quantized):
            return written, k, v
        return (
            written,
            _swapped(as_floats(keys, k.dtype)),
            _swapped(as_floats(values, v.dtype)),
        )

    def attend(
        self, chunk: Chunk, q: Array, k: Array, v: Array, mask: Mask, options: Options
    ) -> tuple[KeyValueCache, Array]:
        """The cache with a chunk written, and attention of its queries over the slots.

        Args:
            chunk: a call that does not begin its rows.
            q: [B, T, N, H], of the chunk's tokens.
            k: [B, T, K, H].
            v: [B, T, K, H'].
            mask: which keys a query sees, of the ``positions`` of this cache.
            options: of attention.

        Returns:
            The written cache, and [B, T, N, H'].
        """
        if isinstance(self.keys, Quantized):
            written, keys, values = self._written(chunk, k, v)
            assert isinstance(keys, Quantized)
            assert isinstance(values, Quantized)
            return written, quantized_attention(q, keys, values, mask, options)
        written, k, v = self.write(chunk, k, v)
        return written, attention_over(q, k, v, mask, options)

    def _written(self, chunk: Chunk, k: Array, v: Array) -> tuple[KeyValueCache, Vectors, Vectors]:
        """The written cache, and keys and values [B, K, S', H] as they are kept."""
        keys, k_read = write_vectors(self.layout, self.keys, _swapped(k), chunk, _SLOTS)
        values, v_read = write_vectors(self.layout, self.values, _swapped(v), chunk, _SLOTS)
        return replace(self, keys=keys, values=values), k_read, v_read

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
        return replace(
            self, keys=vector_axes(names, self.keys), values=vector_axes(names, self.values)
        )


def attention_over(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    """Attention over what a cache gave back: the reference backend, which takes any mask.

    One query a row gains nothing from a fused kernel, and only the reference takes keys of a cache.
    """
    return attention(
        q,
        k,
        v,
        mask,
        scale=options.scale,
        softcap=options.softcap,
        sinks=options.sinks,
        bias=options.bias,
        backend="xla",
    )


def write_vectors(
    layout: Layout | Paged, slots: Vectors, new: Array, chunk: Chunk, axis: int
) -> tuple[Vectors, Vectors]:
    """``layout.write`` of vectors that are floats or int8: the written slots, and what is read."""
    kept = as_stored(new, slots)
    if not isinstance(slots, Quantized) or not isinstance(kept, Quantized):
        return layout.write(slots, kept, chunk, axis)  # type: ignore[arg-type]
    numbers, numbers_read = layout.write(slots.numbers, kept.numbers, chunk, axis)
    scales, scales_read = layout.write(slots.scales, kept.scales, chunk, axis)
    return Quantized(numbers, scales), Quantized(numbers_read, scales_read)


def _swapped(x: Array) -> Array:
    """[B, S, K, H] as [B, K, S, H], or the reverse."""
    return x.swapaxes(1, _SLOTS)
