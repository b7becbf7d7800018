"""The key/value cache of autoregressive decoding: an explicit pytree, written at each row's own
length.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.platform import platform


class CrossCache(NamedTuple):
    """Keys and values of what an encoder read, made once, and the segments of its tokens. H' is the
    width of values.

    k, v:      tuples over the decoder's layers of [B, K, S, H] and [B, K, S, H']
    segments:  int32 [B, S], 0 for padding
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    segments: Array


class KVCache(NamedTuple):
    """Keys and values of every layer. Slot s of a row holds the token at position s; slots at
    ``length`` and later are free.

    k, v: tuples over the layers of keys [B, K, S, H] and values [B, K, S, H'], H' the width of
        values: as a decoding step multiplies them; of latent attention the latents [B, S, C] and
        the rotated part of the keys [B, S, R]
    length: int32 [B], tokens in the cache; None of an empty one, so that a program which reads a
        prompt knows that nothing is before it
    cross: those of an encoder, or None without one and before it has read
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    length: Array | None
    cross: CrossCache | None = None

    def by_layer(self) -> list[tuple[Array, ...]]:
        """(k, v) of each layer, and with an encoder read (k, v, cross k, cross v)."""
        return list(
            zip(self.k, self.v)
            if self.cross is None
            else zip(self.k, self.v, self.cross.k, self.cross.v)
        )


def init_cache(
    num_layers: int,
    batch_size: int,
    length: int,
    kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
    value_dim: int = 0,
) -> KVCache:
    """An empty cache for ``length`` tokens per row. value_dim: width of the values; 0 is that of
    the keys.
    """
    slots = (batch_size, kv_heads, length)
    return _empty(num_layers, (*slots, head_dim), (*slots, value_dim or head_dim), dtype)


def init_latent_cache(
    num_layers: int, batch_size: int, length: int, latent_dim: int, rope_dim: int, dtype: jnp.dtype
) -> KVCache:
    """An empty cache of latent attention (DeepSeek-V2, section 2.1.2) for ``length`` tokens per
    row.
    """
    return _empty(
        num_layers, (batch_size, length, latent_dim), (batch_size, length, rope_dim), dtype
    )


def _empty(num_layers: int, k: tuple[int, ...], v: tuple[int, ...], dtype: jnp.dtype) -> KVCache:
    def make(shape: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))

    return KVCache(make(k), make(v), None)


def as_cached(x: Array) -> Array:
    """Keys or values [B, S, K, H] in the axes of the cache, or those of the cache as [B,
    S, K, H].
    """
    return x.swapaxes(1, 2)


def write(slots: Array, new: Array, start: Array | None, axis: int) -> Array:
    """``slots`` [B, …, S, …] with ``new`` [B, …, T, …] written along ``axis`` (at least 1) at each
    row's ``start`` [B], or at 0.

    The caller makes sure that ``start + T <= S``: past the end the slice is shifted back, as XLA
    does.
    """
    new = new.astype(slots.dtype)
    if start is None:
        return jax.lax.dynamic_update_slice_in_dim(slots, new, 0, axis)
    if slots.shape[0] > 1:
        return jax.vmap(lambda row, n, s: jax.lax.dynamic_update_slice_in_dim(row, n, s, axis - 1))(
            slots, new, start
        )
    if platform() != "cpu":
        return jax.lax.dynamic_update_slice_in_dim(slots, new, start[0], axis)
    # XLA's CPU backend would put a slice's update into what reads the slots, too, and copy all of
    # them in every step. It does not with a scatter, which it takes for such an update unless there
    # are two.
    twice = jax.lax.ScatterDimensionNumbers(tuple(range(1, slots.ndim + 1)), (), (axis,))
    starts, updates = jnp.stack([start, start]), jnp.stack([new, new])
    return jax.lax.scatter(slots, starts, updates, twice, mode=jax.lax.GatherScatterMode.CLIP)
