"""The cache of a model: empty, and after a call."""

from __future__ import annotations

import jax.numpy as jnp

from llm_jax.config import CacheConfig, ModelConfig
from llm_jax.config.support import refusal, refuse
from llm_jax.models.inputs import Memory
from llm_jax.ops.cache import (
    Cache,
    Chunk,
    LayerCache,
    Pages,
    SelfCache,
    Slots,
    cross_cache,
    kernel_sizes,
    kernel_takes,
    key_value_cache,
    latent_cache,
    paged_cache,
    recurrent_cache,
)
from llm_jax.ops.platform import platform
from llm_jax.sharding import own_batch_ways, own_sizes
from llm_jax.types import ConfigError


def empty_cache(
    config: ModelConfig,
    dtype: jnp.dtype,
    slots: Slots,
    encoder_length: int = 0,
    kind: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
) -> Cache:
    """An empty cache.

    Args:
        config: the model.
        dtype: of keys and values.
        slots: how many tokens it is for.
        encoder_length: tokens of an encoder that it has room for; 0 is ``model.max_length``.
        kind: of cache.

    Raises:
        ConfigError: the model cannot use such a cache.
    """
    c = config
    refuse(c, "decode", "decoding with a cache")
    _check_kind(c, slots, kind)
    slots = _slots_of(slots, kind)
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
    padded = _kernel_sizes(c, kind)
    layers = [
        _layer_cache(c, dtype, slots, layer, encoder_length, padded)
        for layer in range(c.num_layers)
    ]
    length = jnp.zeros((slots.rows,), jnp.int32)
    segments = jnp.zeros((slots.rows, encoder_length), jnp.int32) if c.encoder else None
    return Cache(tuple(layers), length, segments, slots.table())


def _check_kind(c: ModelConfig, slots: Slots, kind: CacheConfig) -> None:
    """Raise ConfigError for a kind of cache that the model's layers cannot have."""
    if kind.layout == "paged":
        refuse(c, "paged", "cache.layout 'paged'")
    if kind.dtype == "int8":
        refuse(c, "int8", "cache.dtype 'int8'")
    if slots.rollback:
        refuse(c, "drafts", f"drafts of {slots.rollback} tokens")


def _slots_of(slots: Slots, kind: CacheConfig) -> Slots:
    """``slots`` with the pages and the type that ``kind`` asks for.

    Raises:
        ConfigError: rows or pages do not divide over the devices that have rows of their own.
    """
    slots = slots._replace(int8=kind.dtype == "int8")
    if kind.layout == "dense":
        return slots
    parts = own_batch_ways()
    count = kind.pages or slots.rows * -(-slots.length // kind.page)
    for name, size in (("rows", slots.rows), ("cache.pages", count)):
        if size % parts:
            raise ConfigError(
                f"{name} of a paged cache: {size} do not divide over the {parts} devices that have"
                f" rows of their own; use a multiple of {parts}, or layout dense"
            )
    return slots._replace(pages=Pages(kind.page, count, parts))


def _kernel_sizes(c: ModelConfig, kind: CacheConfig) -> tuple[int, int] | None:
    """Heads and width to which pages are padded for TPU's kernel; None where rows are gathered."""
    by_choice = kind.reads == "auto" and kind.dtype == "compute"
    if not by_choice or kind.layout != "paged" or platform() != "tpu":
        return None
    fits = kernel_takes(c.attention.kv_heads, c.head_dim, own_sizes()["tensor"])
    if not fits or refusal(c, "paged_kernel", "the kernel"):
        return None
    return kernel_sizes(c.attention.kv_heads, c.head_dim)


def _layer_cache(
    c: ModelConfig,
    dtype: jnp.dtype,
    slots: Slots,
    layer: int,
    encoder_length: int,
    padded: tuple[int, int] | None,
) -> LayerCache:
    if c.recurrent:
        return LayerCache(recurrent_cache(slots.rows, c.state_dim, dtype))
    window = c.window(layer)
    if c.latent:
        sizes = (c.latent.kv_latent, c.latent.rope_dim)
        return LayerCache(latent_cache(slots, *sizes, dtype, window=window))
    widths = (c.head_dim, c.value_dim)
    heads = c.attention.kv_heads
    own: SelfCache
    if slots.pages is None:
        own = key_value_cache(slots, heads, widths, dtype, window=window)
    else:
        own = paged_cache(slots, heads, widths, dtype, padded=padded)
    if not c.encoder:
        return LayerCache(own)
    return LayerCache(own, cross_cache(slots.rows, encoder_length, heads, c.head_dim, dtype))


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
