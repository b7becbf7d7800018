"""Linen modules that own parameters; the maths is in ``ops``. Every parameter carries its logical
axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.sharded_attention import sharded_attention
from llm_jax.ops import positions
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.cache import Chunk, KeyValueCache
from llm_jax.ops.masks import Mask
from llm_jax.ops.nn import ACTIVATIONS, gated, layer_norm, linear, project, rms_norm
from llm_jax.sharding import constrain


def logical(init: nn.initializers.Initializer, *axes: str) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(init, axes)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, as the config says; or over the last ``over`` axes
    as if they were one.
    """

    config: ModelConfig
    kind: str = ""
    over: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        flat = x.reshape(*x.shape[: x.ndim - self.over], -1)
        return self._norm(flat).reshape(x.shape)

    def _norm(self, x: Array) -> Array:
        c, width = self.config, x.shape[-1]
        if (self.kind or c.norm) == "rms":
            first = nn.initializers.zeros if c.norm_unit_offset else nn.initializers.ones
            scale = self.param("scale", logical(first, "norm"), (width,))
            return rms_norm(x, scale, eps=c.norm_eps, unit_offset=c.norm_unit_offset)
        scale = self.param("scale", logical(nn.initializers.ones, "norm"), (width,))
        bias = (
            self.param("bias", logical(nn.initializers.zeros, "norm"), (width,))
            if c.norm_bias
            else None
        )
        return layer_norm(x, scale, bias, eps=c.norm_eps)


class Dense(nn.Module):
    """A matrix product over ``len(inputs)`` trailing axes of x, with logical names for both sides
    of the kernel [inputs, outputs]; or with a ``weight`` [outputs, inputs] in its place
    (``Model.split_layers``).
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    features: tuple[int, ...]
    std: float
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n = len(self.inputs)
        if self.has_variable("params", "weight"):
            y = linear(x, self.get_variable("params", "weight").astype(x.dtype), n)
        else:
            shape = x.shape[-n:] + self.features
            kernel = self.param(
                "kernel",
                logical(nn.initializers.normal(self.std), *self.inputs, *self.outputs),
                shape,
            )
            y = checkpoint_name(project(x, kernel.astype(x.dtype), n), "dot")
        if self.use_bias:
            bias = self.param("bias", logical(nn.initializers.zeros, *self.outputs), self.features)
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - n))
        return y


class Kernel(nn.Module):
    """One parameter ``kernel``, for products that are not those of ``Dense``."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    std: float

    @nn.compact
    def __call__(self) -> Array:
        return self.param(
            "kernel", logical(nn.initializers.normal(self.std), *self.axes), self.shape
        )


class Sink(nn.Module):
    """A logit of each head [N] for the softmax of attention (``ModelConfig.attention_sinks``)."""

    heads: int
    std: float

    @nn.compact
    def __call__(self) -> Array:
        return self.param("bias", logical(nn.initializers.normal(self.std), "heads"), (self.heads,))


# The products of an attention's input, in order; and all as one, in parameters split for a CPU
# (``Model.split_layers``).
PROJECTIONS, JOINED = ("query", "key", "value"), "query_key_value"


class Attention(nn.Module):
    """Projections, q/k norm, rotation, and attention over the row or over the cache."""

    config: ModelConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        length: str | None,
        mask: Mask,
        angles: tuple[Array, Array] | None,
        cache: KeyValueCache | None,
        bias: Array | None = None,
        chunk: Chunk | None = None,
    ) -> tuple[Array, KeyValueCache | None]:
        """x: [B, T, D]; length: logical axis of T; bias: of the scores; chunk: what the call
        appends to the cache, with one.

        Returns [B, T, D] and the written cache.
        """
        c, std = self.config, self.config.init_std
        H, N = c.head_size, c.num_heads
        q, k, v = self._projections(x)
        if c.qk_norm:
            over = 1 if c.qk_norm_width == "head" else 2
            q, k = (
                Norm(c, "rms", over, name="query_norm")(q),
                Norm(c, "rms", over, name="key_norm")(k),
            )
        if angles is not None:
            q, k = positions.rotate(q, *angles), positions.rotate(k, *angles)
        q = checkpoint_name(place(self, q, "batch", length, "act_heads", "head_dim"), "query")
        k = checkpoint_name(place(self, k, "batch", length, "act_kv_heads", "head_dim"), "key")
        v = checkpoint_name(place(self, v, "batch", length, "act_kv_heads", "head_dim"), "value")
        sinks = Sink(N, std, name="sink")() if c.attention_sinks else None
        how = {
            "scale": c.attention_scale or H**-0.5,
            "softcap": c.attention_softcap,
            "sinks": sinks,
        }
        if cache is not None and chunk is not None:
            cache, k, v = cache.write(chunk, k, v)
        if self.is_initializing() or (chunk is not None and not chunk.begin):
            # One query per row gains nothing from a fused kernel, and only the reference has a
            # cached form.
            y = attention(q, k, v, mask, backend="xla", bias=bias, **how)
        else:
            y = sharded_attention(q, k, v, mask, self.execution, length, bias=bias, **how)
        if not BACKENDS[self.execution.attention].fused:
            y = checkpoint_name(y, "attention_out")
        return (
            Dense(
                ("heads", "head_dim"),
                ("embed",),
                (c.embed_dim,),
                residual_std(c),
                c.out_bias,
                name="out",
            )(y),
            cache,
        )

    def _projections(self, x: Array) -> list[Array]:
        """[B, T, D] -> queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, H']"""
        c = self.config
        wanted = (
            ("heads", c.num_heads, c.head_size),
            ("kv_heads", c.kv_heads, c.head_size),
            ("kv_heads", c.kv_heads, c.value_size),
        )

        def dense(axes, features, name):
            return Dense(("embed",), axes, features, c.init_std, c.qkv_bias, name=name)(x)

        if not self.has_variable("params", JOINED):
            return [
                dense((axis, "head_dim"), (heads, width), name)
                for name, (axis, heads, width) in zip(PROJECTIONS, wanted)
            ]
        ends = np.cumsum([heads * width for _, heads, width in wanted])
        parts = jnp.split(dense(("heads",), (int(ends[-1]),), JOINED), ends[:-1], axis=-1)
        return [
            part.reshape(*x.shape[:-1], heads, width)
            for part, (_, heads, width) in zip(parts, wanted)
        ]


class Mlp(nn.Module):
    """Gated or plain feed-forward layer of ``hidden`` units F. [B, T, D] -> [B, T, D]. ``length``:
    logical axis of T.
    """

    config: ModelConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Array, length: str | None) -> Array:
        c = self.config
        up = Dense(("embed",), ("mlp",), (self.hidden,), c.init_std, c.mlp_bias, name="up")(x)
        if c.mlp == "gated":
            gate = Dense(("embed",), ("mlp",), (self.hidden,), c.init_std, c.mlp_bias, name="gate")(
                x
            )
            hidden = gated(
                gate, up, activation=c.activation, clamp=c.mlp_clamp, up_offset=c.mlp_up_offset
            )
        else:
            hidden = ACTIVATIONS[c.activation](up)
        hidden = checkpoint_name(place(self, hidden, "batch", length, "act_mlp"), "mlp_hidden")
        return Dense(
            ("mlp",), ("embed",), (c.embed_dim,), residual_std(c), c.mlp_bias, name="down"
        )(hidden)


def place(module: nn.Module, x: Array, *axes: str | None) -> Array:
    # At init the batch is a stand-in of one row, which no mesh could split.
    return x if module.is_initializing() else constrain(x, *axes)


def residual_std(c: ModelConfig) -> float:
    # GPT-2, section 2.3: keeps the variance of the residual stream independent of depth.
    return c.init_std / (2 * c.num_layers) ** 0.5
