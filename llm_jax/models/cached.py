"""What decoding with a cache adds to a model: the empty cache, and the masks and biases of calls,
with or without a cache.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models.cross import Memory
from llm_jax.ops.cache import (
    Cache,
    Chunk,
    LayerCache,
    Slots,
    cross_cache,
    key_value_cache,
    latent_cache,
)
from llm_jax.ops.masks import Mask
from llm_jax.ops.relative import relative_bias
from llm_jax.sharding import constrain
from llm_jax.types import Batch, ConfigError, Params, Tokens


def empty_cache(config: ModelConfig, dtype: jnp.dtype, slots: Slots, encoder_length: int) -> Cache:
    """The cache of a model; encoder_length: 0 is ``max_length``. ConfigError without an encoder."""
    c = config
    if encoder_length and not c.encoder:
        raise ConfigError(
            f"encoder_length is {encoder_length}, and model.encoder is none: there is no"
            " encoder whose tokens a cache could keep; leave it out"
        )
    encoder = (slots.rows, encoder_length or c.max_length)
    widths = (c.head_dim, c.value_dim)

    def layer(window: int) -> LayerCache:
        if c.latent:
            sizes = (c.latent.kv_latent, c.latent.rope_dim)
            return LayerCache(latent_cache(slots, *sizes, dtype, window=window))
        own = key_value_cache(slots, c.attention.kv_heads, widths, dtype, window=window)
        if not c.encoder:
            return LayerCache(own)
        return LayerCache(own, cross_cache(*encoder, c.attention.kv_heads, c.head_dim, dtype))

    return Cache(
        tuple(layer(c.window(l)) for l in range(c.num_layers)),
        jnp.zeros((slots.rows,), jnp.int32),
        jnp.zeros(encoder, jnp.int32) if c.encoder else None,
    )


def written_cache(
    cache: Cache | None,
    chunk: Chunk | None,
    layers: tuple[LayerCache, ...] | None,
    memory: Memory | None,
) -> Cache | None:
    """``cache`` after the call, given its written layers and what the encoder read."""
    if cache is None or chunk is None or layers is None:
        return None
    cache = cache._replace(layers=layers, length=chunk.end)
    if memory is None or memory.hidden is None:
        return cache
    assert cache.encoder_segments is not None and memory.segments is not None
    free = cache.encoder_segments.shape[1] - memory.segments.shape[1]
    return cache._replace(encoder_segments=jnp.pad(memory.segments, ((0, 0), (0, free))))


def relative_biases(
    config: ModelConfig, params: Params, batch: Batch, cache: Cache | None, chunk: Chunk | None
) -> dict[int, Array]:
    """The bias of relative positions [B or 1, N, T, S] per window width in use. Within a segment,
    places in the row are as far apart as positions.
    """
    at = jnp.arange(batch.inputs.ids.shape[1])[None, :]

    def bias(window: int) -> Array:
        q, k = at, at
        if cache is not None and chunk is not None and not chunk.begin:
            own = cache.layers[_windows(config)[window]].own
            q, k = batch.inputs.positions, own.positions(chunk)
            k = jnp.arange(own.slots)[None, :] if k is None else k
        added = relative_bias(
            params["relative"]["bias"],
            q,
            k,
            causal=config.causal,
            max_distance=config.positions.max_distance,
        )
        return constrain(added, None if added.shape[0] == 1 else "batch", "act_heads", None, None)

    return {window: bias(window) for window in _windows(config)}


def _windows(config: ModelConfig) -> dict[int, int]:
    """The window widths in use, and a layer that has each: all of its width have one layout."""
    return {config.window(l): l for l in range(config.num_layers)}


def masks_by_window(
    config: ModelConfig,
    tokens: Tokens,
    cache: Cache | None,
    chunk: Chunk | None,
    *,
    in_order: bool,
) -> dict[int, Mask]:
    """One mask per window width in use. In a cache a row is one segment with its padding on the
    right, which no token sees.

    Args:
        config: the model.
        tokens: what the call reads.
        cache: of the rows, or None for whole rows.
        chunk: what the call brings to the cache.
        in_order: whether tokens lie in their rows in order; otherwise their positions say which is
            before which, within a segment.
    """
    windows = _windows(config)
    mutual = {"q_mutual": tokens.mutual_ids, "k_mutual": tokens.mutual_ids}
    if cache is None or chunk is None:
        index = None if in_order else tokens.positions
        common = {
            "q_segments": tokens.segment_ids,
            "k_segments": tokens.segment_ids,
            "q_index": index,
            "k_index": index,
        }
        return {w: Mask(causal=config.causal, window=w, **common, **mutual) for w in windows}
    if chunk.begin:
        return {w: Mask(window=w, **mutual) for w in windows}
    if tokens.mutual_ids is not None:
        raise ConfigError(
            "batch.inputs.mutual_ids is given for rows that go on in a cache, which does not keep"
            " the groups of their earlier tokens; read a prompt with groups in one call, with begin"
        )
    own = {w: cache.layers[l].own for w, l in windows.items()}
    return {
        w: Mask(window=w, q_index=tokens.positions, k_index=own[w].positions(chunk))
        for w in windows
    }
