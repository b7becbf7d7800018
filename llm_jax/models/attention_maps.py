"""Which keys each query attends to: the weights of every head, of a full forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.attention import AttentionModule
from llm_jax.models.contract import Model
from llm_jax.models.cross import CrossAttention
from llm_jax.ops.attention import attention
from llm_jax.types import Batch, Params

Part = Literal["encoder", "decoder", "cross"]


class AttentionMap(NamedTuple):
    """What the heads of one layer do.

    Attributes:
        part: "encoder" or "decoder", whose tokens attend to themselves, or "cross", the decoder's
            attention to the encoder. A model of one stack has "decoder" only, causal or not.
        layer: from 0 on, within the part.
        weights: float32 [B, N, T, S], from 0 to 1. Those of a query sum to 1; to less where a head
            has an attention sink, and to 0 where the query sees no key.
        norms: float32 [B, N, T], the Euclidean norm of each head's output, before the output
            projection.
    """

    part: Part
    layer: int
    weights: Array
    norms: Array


def plain_execution() -> ExecutionConfig:
    """How a model must run for ``attention_maps``: layers apart, in float32."""
    return ExecutionConfig(attention="xla", layers="unroll", compute_dtype="float32")


def attention_maps(model: Model, params: Params, batch: Batch) -> list[AttentionMap]:
    """The attention of each layer in a full forward pass.

    Args:
        model: built with ``plain_execution()``.
        params: its parameters.
        batch: what it reads.

    Returns:
        A map of each layer, the encoder's first, then the decoder's, then those of cross attention.
    """
    found: list[tuple[bool, Array, Array]] = []

    def attend(run: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        out = run(*args, **kwargs)
        module = context.module
        if context.method_name == "_attend" and isinstance(module, AttentionModule):
            weights = _weights(module, *args, **kwargs)
            norms = jnp.linalg.norm(out.astype(jnp.float32), axis=-1)
            is_cross = isinstance(module, CrossAttention)
            found.append((is_cross, weights, norms.swapaxes(1, 2)))
        return out

    with nn.intercept_methods(attend):
        model.apply(params, batch)
    # Stable: the encoder comes first, and a layer's own attention before its cross attention.
    found.sort(key=lambda one: one[0])
    named = zip(map_names(model.config), found, strict=True)
    return [AttentionMap(*name, *arrays) for name, (_, *arrays) in named]


def map_names(config: ModelConfig) -> list[tuple[Part, int]]:
    """The part and the layer of each map of ``attention_maps``."""
    parts: dict[Part, int] = {"decoder": config.num_layers}
    if config.encoder is not None:
        parts = {"encoder": config.encoder.num_layers, **parts, "cross": config.num_layers}
    return [(part, layer) for part, layers in parts.items() for layer in range(layers)]


def _weights(
    module: AttentionModule, q: Array, k: Array, v: Array, mask: Any, **given: Any
) -> Array:
    """[B, N, T, S], as the attention of values that each mark one key."""
    B, S, K, _ = k.shape
    marks = jnp.broadcast_to(jnp.eye(S, dtype=q.dtype)[None, :, None, :], (B, S, K, S))
    weights = attention(
        q,
        k,
        marks,
        mask,
        scale=module._scale(),
        softcap=module.config.attention.softcap,
        sinks=given.get("sinks"),
        bias=given.get("bias"),
        backend="xla",
    )
    return weights.astype(jnp.float32).swapaxes(1, 2)


def head_entropy(weights: Array) -> Array:
    """The entropy of each query's weights, in nats.

    Args:
        weights: [..., S], at least 0. They are divided by their sum, so that an attention sink
            takes no part.

    Returns:
        float32 [...]; 0 where a query sees no key.
    """
    total = jnp.sum(weights, axis=-1, keepdims=True)
    shares = weights / jnp.where(total > 0, total, 1.0)
    logs = jnp.log(jnp.where(shares > 0, shares, 1.0))
    return -jnp.sum(shares * logs, axis=-1)
