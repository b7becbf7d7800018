"""What reads the output of the last layer: the output projection, vectors of rows, and classes of
rows.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.model import PoolerConfig
from llm_jax.models.contract import Head
from llm_jax.models.embedding import whole_table
from llm_jax.models.layers import Norm, run_module
from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.nn import ACTIVATIONS, soft_cap
from llm_jax.ops.pooling import first_token, last_token, mean_pool
from llm_jax.ops.weights import OutputFirst, Weight, is_weight_leaf, matmul, to_array
from llm_jax.types import ConfigError, Params

# What makes one vector of a row's hidden states and the mask of its tokens.
POOLINGS = {"first": first_token, "mean": mean_pool, "last": last_token}


def logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits float32 [..., V] of hidden [..., D]."""
    if config.head.transform:
        hidden = _head_transform(config, params["head_transform"], hidden)
    if config.logit_scale != 1:
        hidden = hidden * jnp.asarray(config.logit_scale, hidden.dtype)
    out = matmul(hidden, _head_weight(config, params)).astype(jnp.float32)
    if config.head.bias:
        out = out + jnp.expand_dims(params["head"]["bias"].astype(out.dtype), range(out.ndim - 1))
    return soft_cap(out, config.head.softcap)


def head(config: ModelConfig, dtype: jnp.dtype, params: Params) -> Head:
    """The output projection in ``dtype``, of which ``logits`` are made."""
    weight = _head_weight(config, params)
    kernel = weight.array if isinstance(weight, OutputFirst) else to_array(weight, jnp.float32).T
    if config.logit_scale != 1:
        kernel = kernel * config.logit_scale
    transform = None
    if config.head.transform:
        make = partial(_head_transform, config)
        transform = jax.tree_util.Partial(make, params["head_transform"])
    return Head(
        kernel=whole_table(kernel, dtype),
        softcap=config.head.softcap,
        bias=params["head"]["bias"] if config.head.bias else None,
        transform=transform,
    )


def pooled(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """The vector of each row, made of its first token (Devlin et al. 2019), its last one or the
    mean; or that of each token (``model.pooler.reads``).

    Args:
        config: the model.
        params: of the model.
        hidden: [B, T, D].
        mask: bool [B, T], False for padding.

    Returns:
        [B, D]; where the pooler reads each token, [B, T, D].

    Raises:
        ConfigError: the model has no pooler.
    """
    pooler = config.pooler
    if pooler is None:
        raise ConfigError(
            "model.pooler is none: the model has no layer for vectors of rows; use ops.mean_pool,"
            " or set it to on"
        )
    rows = explicit_spec(hidden, 2 if pooler.reads == "each" else 1)
    return place_automatically(partial(_pooled, config, pooler), rows, params, hidden, mask)


def row_vectors(
    config: ModelConfig, params: Params, hidden: Array, mask: Array, pooling: str
) -> Array:
    """The vector of each row by a pooling: mean, first or last; or ``pooled``, by model.

    Args:
        config: the model.
        params: of the model.
        hidden: [B, T, D].
        mask: bool [B, T], the tokens that count.
        pooling: one of these names.

    Returns:
        [B, D].

    Raises:
        ConfigError: the pooling is not known, or is that of a model without a pooler of rows.
    """
    if pooling in POOLINGS:
        rows = explicit_spec(hidden, 1)
        return place_automatically(POOLINGS[pooling], rows, hidden, mask)
    if pooling != "model":
        raise ConfigError(f"pooling is {pooling!r}; it must be {', '.join(POOLINGS)} or model")
    if config.pooler is None or config.pooler.reads == "each":
        reads = "is none" if config.pooler is None else "reads each token"
        raise ConfigError(
            f"pooling is 'model', and model.pooler {reads}: the model has no pooler of rows; use"
            " mean"
        )
    return pooled(config, params, hidden, mask)


def _pooled(
    config: ModelConfig, pooler: PoolerConfig, params: Params, hidden: Array, mask: Array
) -> Array:
    of_row = hidden if pooler.reads == "each" else POOLINGS[pooler.reads](hidden, mask)
    if pooler.layer == "identity":
        return of_row
    if pooler.layer == "transform":
        return _head_transform(config, params["head_transform"], of_row)
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[pooler.layer]
    return activation(_dense(params["pooler"], of_row))


def class_logits(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """Logits of the classes of each row, or of each token, made of its ``pooled`` vector.

    Args:
        config: the model.
        params: of the model.
        hidden: [B, T, D].
        mask: bool [B, T], False for padding.

    Returns:
        float32 [B, ``config.pooler.num_classes``]; where the pooler reads each token, [B, T,
        ``config.pooler.num_classes``].

    Raises:
        ConfigError: the model has no classes, or no pooler.
    """
    if config.pooler is None or not config.pooler.num_classes:
        raise ConfigError(
            "model.pooler.num_classes is 0: the model has no classes of rows; set it to their"
            " number"
        )
    of_row = pooled(config, params, hidden, mask)
    rows = explicit_spec(of_row, of_row.ndim - 1)
    return place_automatically(_dense, rows, params["classes"], of_row).astype(jnp.float32)


def _head_transform(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """A dense layer, an activation and a norm before the output projection (Devlin et al. 2019,
    released code). params: of these layers.
    """
    rows = explicit_spec(hidden, hidden.ndim - 1)
    return place_automatically(partial(_transformed, config), rows, params, hidden)


def _transformed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    activated = ACTIVATIONS[config.mlp.activation](_dense(params, hidden))
    return run_module(Norm(config), params["norm"], activated)


def _head_weight(config: ModelConfig, params: Params) -> Weight:
    """The output projection, a weight [D, V]."""
    if not config.embedding.tied:
        return params["head"]["kernel"]
    table = params["embed"]["embedding"]
    return OutputFirst(to_array(table, jnp.float32) if is_weight_leaf(table) else table)


def _dense(params: Params, x: Array) -> Array:
    y = matmul(x, params["kernel"])
    if "bias" not in params:
        return y
    return y + jnp.expand_dims(params["bias"].astype(x.dtype), range(x.ndim - 1))
