"""What a call gives to all layers: masks, rotations and biases."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.models.inputs import Memory, StackInput
from llm_jax.models.rotations import rotations
from llm_jax.models.row_layout import PositionAxes
from llm_jax.ops.cache import Cache, Chunk, RecurrentCache
from llm_jax.ops.cpu import materialize
from llm_jax.ops.masks import Mask
from llm_jax.ops.relative import relative_bias
from llm_jax.sharding import constrain
from llm_jax.types import Batch, ConfigError, Params


class Call(NamedTuple):
    """What one call of a model reads.

    Attributes:
        batch: the tokens.
        cache: of the rows, or None if the batch has whole rows.
        chunk: what the call appends to the cache; None without one.
        memory: the output of an encoder, or None.
    """

    batch: Batch
    cache: Cache | None = None
    chunk: Chunk | None = None
    memory: Memory | None = None


def stack_input(
    config: ModelConfig,
    params: Params,
    call: Call,
    axes: PositionAxes,
    *,
    in_order: bool,
    dropout_key: Array | None = None,
) -> StackInput:
    """What a call gives to all layers.

    Args:
        config: the model.
        params: of the model.
        call: what it reads.
        axes: logical axes of the positions.
        in_order: whether tokens lie in their rows in order. Otherwise the masks read their
            positions.
        dropout_key: None without dropout.
    """
    batch = call.batch
    masks = _masks_by_window(config, call, in_order=in_order)
    make_angles = partial(rotations, config, batch, call.chunk)
    if call.chunk is None:
        angles = make_angles()
        loss_weights = batch.loss_mask.astype(jnp.float32)
    else:
        angles = materialize(make_angles, batch.inputs.positions[0, 0] >= 0)
        loss_weights = None
    inputs = StackInput(masks, angles, axes, dropout_key, call.chunk, loss_weights)
    if isinstance(config.positions, RelativePositionsConfig):
        inputs = inputs._replace(bias=_biases_by_window(config, params, call))
    if call.memory is not None:
        mask = call.memory.mask(batch.inputs.segment_ids)
        inputs = inputs._replace(memory=call.memory, memory_mask=mask)
    return inputs


def _masks_by_window(config: ModelConfig, call: Call, *, in_order: bool) -> dict[int, Mask]:
    """One mask for each window width. In a cache a row is one segment, with its padding on the
    right, which no token sees.
    """
    tokens = call.batch.inputs
    windows = _windows(config)
    groups = tokens.mutual_ids
    if groups is not None and config.recurrent:
        raise ConfigError(
            "batch.inputs.mutual_ids is given, and model.recurrent is"
            f" {config.recurrent.kind!r}: recurrent layers see only the tokens before; leave them"
            " out"
        )
    if call.cache is None or call.chunk is None:
        index = None if in_order else tokens.positions
        return {
            window: Mask(
                causal=config.causal,
                window=window,
                q_segments=tokens.segment_ids,
                k_segments=tokens.segment_ids,
                q_mutual=groups,
                k_mutual=groups,
                q_index=index,
                k_index=index,
            )
            for window in windows
        }
    if call.chunk.begin:
        return {window: Mask(window=window, q_mutual=groups, k_mutual=groups) for window in windows}
    if groups is not None:
        raise ConfigError(
            "batch.inputs.mutual_ids is given for rows that go on in a cache, which does not keep"
            " the groups of their earlier tokens; read a prompt with groups in one call, with begin"
        )
    masks = {}
    for window, layer in windows.items():
        keys = call.cache.layers[layer].own.positions(call.chunk)
        masks[window] = Mask(window=window, q_index=tokens.positions, k_index=keys)
    return masks


def _biases_by_window(config: ModelConfig, params: Params, call: Call) -> dict[int, Array]:
    """The bias of relative positions [B or 1, N, T, S] for each window width."""
    return {
        window: _bias(config, params, call, layer) for window, layer in _windows(config).items()
    }


def _bias(config: ModelConfig, params: Params, call: Call, layer: int) -> Array:
    """The bias of relative positions [B or 1, N, T, S] for ``layer``."""
    relative = config.positions
    assert isinstance(relative, RelativePositionsConfig)
    q, k = _bias_positions(call, layer)
    bias = relative_bias(
        params["relative"]["bias"],
        q,
        k,
        causal=config.causal,
        max_distance=relative.max_distance,
    )
    rows = None if bias.shape[0] == 1 else "batch"
    return constrain(bias, rows, "act_heads", None, None)


def _bias_positions(call: Call, layer: int) -> tuple[Array, Array]:
    """Positions of the queries and keys of ``layer``, [B or 1, T] and [B or 1, S].

    For tokens of one segment their places in the row are as far apart as their positions.
    """
    places = jnp.arange(call.batch.inputs.ids.shape[1])[None, :]
    if call.cache is None or call.chunk is None or call.chunk.begin:
        return places, places
    own = call.cache.layers[layer].own
    assert not isinstance(own, RecurrentCache)
    keys = own.positions(call.chunk)
    if keys is None:
        keys = jnp.arange(own.slots_read(call.chunk))[None, :]
    return call.batch.inputs.positions, keys


def _windows(config: ModelConfig) -> dict[int, int]:
    """Each window width, with one of its layers: all of them have the same cache layout."""
    return {config.window(layer): layer for layer in range(config.num_layers)}
