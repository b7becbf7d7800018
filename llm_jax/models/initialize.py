"""Initial parameters of a model, with their specs."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.parametrization import initial_scale
from llm_jax.config.positions import LearnedPositionsConfig, RelativePositionsConfig
from llm_jax.models.layers import Norm
from llm_jax.models.parameters import Declared, declared, is_declared
from llm_jax.models.stacks import Stack, init_stacks
from llm_jax.types import Params, Role


def declare_parameters(
    config: ModelConfig, dtype: jnp.dtype, stacks: Sequence[Stack], key: Array
) -> Params:
    """Initial parameters with their specs, as a tree of ``Declared``.

    Args:
        config: the model.
        dtype: type of activations.
        stacks: its layers.
        key: of the random numbers.
    """
    keys = jax.random.split(key, 4)
    D = config.embed_dim
    params: Params = {
        "embed": {"embedding": _table(config, ("vocab", "embed"), config.vocab_size, keys[0])},
        **_optional_parameters(config, jax.random.fold_in(key, 1)),
    }
    if isinstance(config.positions, LearnedPositionsConfig):
        normal = nn.initializers.normal(config.init_std)
        table = declared(normal, ("position", "embed"), "position", [1])
        rows = config.max_length + config.positions.offset
        params["positions"] = {"positions": table(keys[1], (rows, D))}
    x = jnp.zeros((1, 1, D), dtype)
    params |= init_stacks(stacks, keys[2], x)
    if config.norm.final:
        params["final_norm"] = Norm(config).init(keys[3], x)["params"]
    head = _head(config, keys[3])
    if head:
        params["head"] = head
    return _scaled(config, params) if config.growth else params


def _scaled(config: ModelConfig, params: Params) -> Params:
    """``params`` with the initial values of ``model.parametrization`` in the place of the standard
    ones.
    """

    def one(box: Declared) -> Declared:
        scale = initial_scale(box.spec, config.growth)
        return Declared(box.value * scale, box.spec)

    return jax.tree.map(one, params, is_leaf=is_declared)


def _table(config: ModelConfig, axes: Sequence[str], rows: int, key: Array) -> Declared:
    """An embedding table [rows, D]."""
    normal = nn.initializers.normal(config.init_std)
    return declared(normal, axes, "embedding", [1])(key, (rows, config.embed_dim))


def _head(config: ModelConfig, key: Array) -> Params:
    """Parameters of the output projection; {} if it is the embedding table alone."""
    normal = nn.initializers.normal(config.init_std)
    head: Params = {}
    if not config.embedding.tied:
        kernel = declared(normal, ("embed", "vocab"), "head", [0])
        head["kernel"] = kernel(key, (config.embed_dim, config.vocab_size))
    if config.head.bias:
        head["bias"] = _zeros("vocab", config.vocab_size, key)
    return head


def _optional_parameters(config: ModelConfig, key: Array) -> Params:
    """Parameters outside the layers that only some models have, beyond the output projection."""
    D = config.embed_dim
    normal = nn.initializers.normal(config.init_std)
    # Each random parameter of this list takes the next key.
    keys = iter(jax.random.split(key, 5))

    def dense(axis: str, size: int, role: Role = "matrix") -> Declared:
        return declared(normal, ("embed", axis), role, [0])(next(keys), (D, size))

    def norm() -> Params:
        return Norm(config).init(key, jnp.zeros((1, D)))["params"]

    params: Params = {}
    if config.embedding.token_types:
        table = _table(config, ("token_type", "embed"), config.embedding.token_types, next(keys))
        params["token_types"] = {"embedding": table}
    if config.embedding.norm:
        params["embedding_norm"] = norm()
    if isinstance(config.positions, RelativePositionsConfig):
        bias = declared(normal, ["bucket", "heads"], "bias")
        shape = (config.positions.buckets, config.attention.num_heads)
        params["relative"] = {"bias": bias(next(keys), shape)}
    if config.head.transform:
        params["head_transform"] = {"kernel": dense("transform", D), "norm": norm()}
        if config.head.transform.bias:
            params["head_transform"]["bias"] = _zeros("transform", D, key)
    pooler = config.pooler
    if pooler and pooler.layer not in ("transform", "identity"):
        params["pooler"] = {"kernel": dense("transform", D), "bias": _zeros("transform", D, key)}
    if pooler and pooler.num_classes:
        kernel = dense("class", pooler.num_classes)
        params["classes"] = {
            "kernel": kernel,
            "bias": _zeros("class", pooler.num_classes, key),
        }
    return params


def _zeros(axis: str, size: int, key: Array) -> Declared:
    return declared(nn.initializers.zeros, [axis], "bias")(key, (size,))
