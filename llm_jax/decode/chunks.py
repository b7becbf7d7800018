"""Prompts read chunk by chunk, in bounded memory.

A chunk of a row ends at a multiple of ``size`` of the row's own positions, wherever the row begins
and whatever the other rows are. So a row is always read in the same calls, and its numbers are the
same to the bit beside any other rows, and after a prefix that was in the cache already.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.programs import extend
from llm_jax.models import Model
from llm_jax.types import ConfigError, Params


class _State(NamedTuple):
    """State of the loop. hidden: [B, D], of the last token that each row has read."""

    cache: Any
    hidden: Array


def prefill_in_chunks(
    model: Model, params: Params, tokens: Array, lengths: Array, cache: Any, size: int
) -> tuple[Array, Any]:
    """``programs.prefill`` with at most ``size`` tokens of each row in a call.

    Args:
        model: a decoder without an encoder.
        params: its parameters.
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B], tokens of each prompt, at least 1.
        cache: an empty cache; or one with the first ``cache.length`` tokens of each prompt, which
            must be fewer than ``lengths``, so that there are logits to give.
        size: most tokens of a row that are read in one call.

    Returns:
        The logits [B, V] after each row's last token, and the cache.

    Raises:
        ConfigError: ``size`` is less than 1, an encoder reads the prompts, or rotations would
            change within a prompt.
    """
    check_chunks(model, tokens.shape[1], size)
    hidden = jax.eval_shape(partial(extend, model), *_shapes(params, tokens, cache, size))[0]
    begun = _State(cache, jnp.zeros((tokens.shape[0], hidden.shape[-1]), hidden.dtype))

    def unread(state: _State) -> Array:
        return jnp.any(state.cache.length < lengths)

    def read_on(state: _State) -> _State:
        start = state.cache.length
        counts = jnp.clip(lengths - start, 0, size - start % size)
        place = start[:, None] + jnp.arange(size)[None, :]
        chunk = jnp.take_along_axis(tokens, jnp.minimum(place, tokens.shape[1] - 1), axis=1)
        hidden, cache = extend(model, params, chunk, counts, state.cache)
        last = jnp.maximum(counts - 1, 0)[:, None, None]
        of_last = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        return _State(cache, jnp.where((counts > 0)[:, None], of_last, state.hidden))

    state = jax.lax.while_loop(unread, read_on, begun)
    return model.logits(params, state.hidden[:, None])[:, 0], state.cache


def check_chunks(model: Model, length: int, size: int) -> None:
    """Raises ConfigError if prompts of ``length`` tokens cannot be read in chunks of ``size``."""
    if size < 1:
        raise ConfigError(f"chunks of {size} tokens; give at least 1")
    if model.config.encoder is not None:
        raise ConfigError(
            "model.encoder is 'on': an encoder reads a prompt in one call; leave chunks out"
        )
    switch = model.config.rope_switch
    if switch and length > switch:
        raise ConfigError(
            f"prompts of {length} tokens pass the {switch} at which this model's rotations change,"
            " and a prompt that does is read with others from its first token on; leave chunks out"
        )


def _shapes(params: Params, tokens: Array, cache: Any, size: int) -> tuple[Any, ...]:
    """What ``extend`` gets for one chunk, after the model."""
    rows = tokens.shape[0]
    chunk = jax.ShapeDtypeStruct((rows, size), tokens.dtype)
    return params, chunk, jax.ShapeDtypeStruct((rows,), jnp.int32), cache
