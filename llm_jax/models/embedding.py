"""The input of the first layer: embeddings of tokens, positions and token types."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.positions import LearnedPositionsConfig, SinusoidalPositionsConfig
from llm_jax.models.layers import Norm, run_module
from llm_jax.ops.positions import sinusoidal
from llm_jax.ops.transposes import with_transpose
from llm_jax.ops.weights import is_weight_leaf, take_rows
from llm_jax.sharding import constrain, constrain_with_grad, placement
from llm_jax.types import Batch, ConfigError, Params


def embed(config: ModelConfig, params: Params, batch: Batch, dtype: jnp.dtype, rows: str) -> Array:
    """Embeddings [B, T, D].

    Args:
        config: the model.
        params: of the model.
        batch: the tokens.
        dtype: of the result.
        rows: logical axis of B.

    Raises:
        ConfigError: the batch has token types and the model has none.
    """
    table = params["embed"]["embedding"]
    if not is_weight_leaf(table):
        # Looking rows up in a table split by column would move the whole batch.
        table = whole_table(table, dtype)
    x = _split_gradient(take_rows(table, batch.inputs.ids, dtype), rows)
    if config.embedding.scale_by_width:
        x = x * jnp.asarray(config.embed_dim**0.5, dtype)
    if config.embedding.scale != 1:
        x = x * jnp.asarray(config.embedding.scale, dtype)
    if isinstance(config.positions, LearnedPositionsConfig):
        indices = batch.inputs.positions + config.positions.offset
        x = x + jnp.take(params["positions"]["positions"], indices, axis=0).astype(dtype)
    elif isinstance(config.positions, SinusoidalPositionsConfig):
        x = x + sinusoidal(batch.inputs.positions, config.embed_dim).astype(dtype)
    x = _add_token_types(config, params, x, batch)
    if config.embedding.norm:
        x = run_module(Norm(config), params["embedding_norm"], x)
    return x


def whole_table(table: Array, dtype: jnp.dtype) -> Array:
    """A table [V, D] in ``dtype``, gathered over mesh.fsdp. Its gradient is split again as the
    parameter is.
    """
    return constrain_with_grad(table.astype(dtype), ("act_vocab", "act_embed"), ("vocab", "embed"))


def _add_token_types(config: ModelConfig, params: Params, x: Array, batch: Batch) -> Array:
    types = batch.inputs.token_types
    if config.embedding.token_types:
        types = jnp.zeros_like(batch.inputs.ids) if types is None else types
        return x + take_rows(params["token_types"]["embedding"], types, x.dtype)
    if types is not None:
        raise ConfigError(
            "batch.inputs.token_types is given, and model.embedding.token_types is 0: nothing"
            " would read them; leave them out"
        )
    return x


def _split_gradient(x: Array, rows: str) -> Array:
    """x [B, T, D], whose gradient is split by width over the devices of mesh.context.

    The gradient comes split by position, and goes to a table that is split by width: this makes it
    two steps, each of which exchanges data within one mesh axis.
    """

    axes = (rows, None, "width_for_length")
    if placement(axes, x.shape) is None:
        return x

    def same(x: Array) -> Array:
        return x

    def split(gradient: Array) -> Array:
        return constrain(gradient, *axes)

    return with_transpose(same, split, (), x)
