"""What encoders add to the one stack: embeddings of token types, the masked-token head, and vectors
and classes of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.models.layers import Norm
from llm_jax.models.parameters import Declared, declared
from llm_jax.ops.nn import ACTIVATIONS
from llm_jax.ops.pooling import first_token, mean_pool
from llm_jax.ops.weights import matmul, take_rows
from llm_jax.types import Batch, ConfigError, Params, Role


def init_extras(config: ModelConfig, key: Array) -> Params:
    """Boxed parameters of what the config asks for beyond tokens, layers and the output
    projection's kernel.
    """
    D, std = config.embed_dim, config.init_std
    keys = iter(jax.random.split(key, 5))

    def matrix(axes: Sequence[str], shape: Sequence[int], role: Role, contract: int) -> Declared:
        normal = nn.initializers.normal(std)
        return declared(normal, axes, role, [contract])(next(keys), shape)

    def zeros(axis: str, size: int) -> Declared:
        return declared(nn.initializers.zeros, [axis], "bias")(key, (size,))

    def norm():
        return Norm(config).init(key, jnp.zeros((1, D)))["params"]

    extras: Params = {}
    if config.embedding.token_types:
        table = matrix(("token_type", "embed"), (config.embedding.token_types, D), "embedding", 1)
        extras["token_types"] = {"embedding": table}
    if config.embedding.norm:
        extras["embedding_norm"] = norm()
    if isinstance(config.positions, RelativePositionsConfig):
        normal = declared(nn.initializers.normal(std), ["bucket", "heads"], "bias")
        shape = config.positions.buckets, config.attention.num_heads
        extras["relative"] = {"bias": normal(next(keys), shape)}
    if config.head.transform:
        kernel = matrix(("embed", "transform"), (D, D), "matrix", 0)
        bias = {"bias": zeros("transform", D)} if config.head.transform.bias else {}
        extras["head_transform"] = {"kernel": kernel, **bias, "norm": norm()}
    pooler = config.pooler
    if pooler and pooler.layer != "transform":
        kernel = matrix(("embed", "transform"), (D, D), "matrix", 0)
        extras["pooler"] = {"kernel": kernel, "bias": zeros("transform", D)}
    if pooler and pooler.num_classes:
        kernel = matrix(("embed", "class"), (D, pooler.num_classes), "matrix", 0)
        extras["classes"] = {"kernel": kernel, "bias": zeros("class", pooler.num_classes)}
    return extras


def add_to_embedding(config: ModelConfig, params: Params, x: Array, batch: Batch) -> Array:
    """Embeddings [B, T, D] of tokens and positions with those of token types, and their norm."""
    if config.embedding.token_types:
        types = batch.inputs.token_types
        types = jnp.zeros_like(batch.inputs.ids) if types is None else types
        x = x + take_rows(params["token_types"]["embedding"], types, x.dtype)
    elif batch.inputs.token_types is not None:
        raise ConfigError(
            "batch.inputs.token_types is given, and model.embedding.token_types is 0: nothing"
            " would read them; leave them out"
        )
    return (
        Norm(config).apply({"params": params["embedding_norm"]}, x) if config.embedding.norm else x
    )


def head_transform(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """What the output projection reads: hidden [..., D], or the head's transform of it (Devlin et
    al. 2019, released code).
    """
    if config.head.transform is None:
        return hidden
    p = params["head_transform"]
    return Norm(config).apply(
        {"params": p["norm"]}, ACTIVATIONS[config.mlp.activation](_dense(p, hidden))
    )


def pooled(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """The vector [B, D] of each row, of its first token (Devlin et al. 2019) or their mean. hidden:
    [B, T, D], mask: bool [B, T], False for padding.

    Raises ConfigError for a model without a pooler.
    """
    pooler = config.pooler
    if pooler is None:
        raise ConfigError(
            "model.pooler is none: the model has no layer for vectors of rows; use ops.mean_pool,"
            " or set it to on"
        )
    of_row = {"first": first_token, "mean": mean_pool}[pooler.reads](hidden, mask)
    if pooler.layer == "transform":
        return head_transform(config, params, of_row)
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[pooler.layer]
    return activation(_dense(params["pooler"], of_row))


def class_logits(config: ModelConfig, params: Params, hidden: Array, mask: Array) -> Array:
    """float32 [B, C] of each row, out of its ``pooled`` vector. Raises ConfigError for a model
    without classes.
    """
    if config.pooler is None or not config.pooler.num_classes:
        raise ConfigError(
            "model.pooler.num_classes is 0: the model has no classes of rows; set it to their"
            " number"
        )
    return _dense(params["classes"], pooled(config, params, hidden, mask)).astype(jnp.float32)


def _dense(p: Params, x: Array) -> Array:
    y = matmul(x, p["kernel"])
    if "bias" not in p:
        return y
    return y + jnp.expand_dims(p["bias"].astype(x.dtype), range(x.ndim - 1))
