"""The cache of a model: empty, and after a call."""

from __future__ import annotations

import jax.numpy as jnp

from llm_jax.config import ModelConfig
from llm_jax.config.support import refuse
from llm_jax.models.inputs import Memory
from llm_jax.ops.cache import (
    Cache,
    Chunk,
    LayerCache,
    Slots,
    cross_cache,
    key_value_cache,
    latent_cache,
)
from llm_jax.types import ConfigError


def empty_cache(
    config: ModelConfig, dtype: jnp.dtype, slots: Slots, encoder_length: int = 0
) -> Cache:
    """An empty cache.

    Args:
        config: the model.
        dtype: of keys and values.
        slots: how many tokens it is for.
        encoder_length: tokens of an encoder that it has room for; 0 is ``model.max_length``.

    Raises:
        ConfigError: the model cannot use such a cache.
    """
    c = config
    refuse(c, "decode", "decoding with a cache")
    if slots.length > c.max_length:
        raise ConfigError(
            f"a cache of {slots.length} tokens is longer than model.max_length {c.max_length}"
        )
    if encoder_length and not c.encoder:
        raise ConfigError(
            f"encoder_length is {encoder_length}, and model.encoder is none: there is no"
            " encoder whose tokens a cache could keep; leave it out"
        )
    encoder_length = encoder_length or c.max_length
    layers = [_layer_cache(c, dtype, slots, layer, encoder_length) for layer in range(c.num_layers)]
    length = jnp.zeros((slots.rows,), jnp.int32)
    if not c.encoder:
        return Cache(tuple(layers), length)
    return Cache(tuple(layers), length, jnp.zeros((slots.rows, encoder_length), jnp.int32))


def _layer_cache(
    c: ModelConfig, dtype: jnp.dtype, slots: Slots, layer: int, encoder_length: int
) -> LayerCache:
    window = c.window(layer)
    if c.latent:
        sizes = (c.latent.kv_latent, c.latent.rope_dim)
        return LayerCache(latent_cache(slots, *sizes, dtype, window=window))
    widths = (c.head_dim, c.value_dim)
    own = key_value_cache(slots, c.attention.kv_heads, widths, dtype, window=window)
    if not c.encoder:
        return LayerCache(own)
    return LayerCache(
        own, cross_cache(slots.rows, encoder_length, c.attention.kv_heads, c.head_dim, dtype)
    )


def written_cache(
    cache: Cache, chunk: Chunk, layers: tuple[LayerCache, ...], memory: Memory | None
) -> Cache:
    """``cache`` after a call, given its written layers and the output of an encoder, if it ran."""
    cache = cache._replace(layers=layers, length=chunk.end)
    if memory is None or memory.hidden is None:
        return cache
    assert cache.encoder_segments is not None
    assert memory.segments is not None
    free = cache.encoder_segments.shape[1] - memory.segments.shape[1]
    return cache._replace(encoder_segments=jnp.pad(memory.segments, ((0, 0), (0, free))))
