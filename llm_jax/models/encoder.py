"""What encoders add to the one stack: embeddings of token types, the masked-token head, and vectors
and classes of rows.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models.layers import Norm, logical
from llm_jax.ops.nn import ACTIVATIONS, project
from llm_jax.ops.pooling import first_token, mean_pool
from llm_jax.types import Batch, ConfigError, Params


def init_extras(config: ModelConfig, key: Array) -> Params:
    """Boxed parameters of what the config asks for beyond tokens, layers and the output
    projection's kernel.
    """
    D, std = config.embed_dim, config.init_std
    keys = iter(jax.random.split(key, 5))

    def make(
        axes: tuple[str, ...], shape: tuple[int, ...], std: float = std
    ) -> nn.meta.AxisMetadata:
        return logical(nn.initializers.normal(std), *axes)(next(keys), shape, jnp.float32)

    def zeros(axis: str, size: int) -> nn.meta.AxisMetadata:
        return logical(nn.initializers.zeros, axis)(key, (size,), jnp.float32)

    def norm():
        return Norm(config).init(key, jnp.zeros((1, D)))["params"]

    extras: Params = {}
    if config.token_types:
        extras["token_types"] = {
            "embedding": make(("token_type", "embed"), (config.token_types, D))
        }
    if config.embedding_norm:
        extras["embedding_norm"] = norm()
    if config.positions == "relative":
        extras["relative"] = {
            "bias": make(("bucket", "heads"), (config.relative_buckets, config.num_heads))
        }
    if config.head_transform:
        bias = {"bias": zeros("transform", D)} if config.head_transform_bias else {}
        extras["head_transform"] = {
            "kernel": make(("embed", "transform"), (D, D)),
            **bias,
            "norm": norm(),
        }
    if config.pooler in ("tanh", "relu"):
        extras["pooler"] = {
            "kernel": make(("embed", "transform"), (D, D)),
            "bias": zeros("transform", D),
        }
    if config.num_classes:
        kernel = make(("embed", "class"), (D, config.num_classes))
        extras["classes"] = {"kernel": kernel, "bias": zeros("class", config.num_classes)}
    return extras


def add_to_embedding(config: ModelConfig, params: Params, x: Array, batch: Batch) -> Array:
    """Embeddings [B, T, D] of tokens and positions with those of token types, and their norm."""
    if config.token_types:
        types = jnp.zeros_like(batch.tokens) if batch.token_types is None else batch.token_types
        x = x + jnp.take(params["token_types"]["embedding"], types, axis=0).astype(x.dtype)
    elif batch.token_types is not None:
        raise ConfigError(
            "batch.token_types is given, and model.token_types is 0: nothing would read them; leave"
            " them out"
        )
    return (
        Norm(config).apply({"params": params["embedding_norm"]}, x) if config.embedding_norm else x
    )


def head_transform(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """What the output projection reads: hidden [..., D], or the head's transform of it (Devlin et
    al. 2019, released code).
    """
    if not config.head_transform:
        return hidden
    p = params["head_transform"]
    return Norm(config).apply(
        {"params": p["norm"]}, ACTIVATIONS[config.activation](_dense(p, hidden))
    )


def pooled(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """The vector [B, D] of each row, of its first token (Devlin et al. 2019) or their mean. hidden:
    [B, T, D], mask: bool [B, T], False for padding.

    Raises ConfigError for a model without a pooler.
    """
    if config.pooler == "none":
        raise ConfigError(
            "model.pooler is none: the model has no layer for vectors of rows; use ops.mean_pool,"
            " or set it to tanh, relu or transform"
        )
    of_row = {"first": first_token, "mean": mean_pool}[config.pooling](hidden, mask)
    if config.pooler == "transform":
        return head_transform(config, params, of_row)
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[config.pooler]
    return activation(_dense(params["pooler"], of_row))


def class_logits(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """float32 [B, C] of each row, out of its ``pooled`` vector. Raises ConfigError for a model
    without classes.
    """
    if not config.num_classes:
        raise ConfigError(
            "model.num_classes is 0: the model has no classes of rows; set it to their number"
        )
    return _dense(params["classes"], pooled(config, params, hidden, mask)).astype(jnp.float32)


def _dense(p: Params, x: Array) -> Array:
    y = project(x, p["kernel"].astype(x.dtype), 1)
    return y + jnp.expand_dims(p["bias"].astype(x.dtype), range(x.ndim - 1)) if "bias" in p else y
