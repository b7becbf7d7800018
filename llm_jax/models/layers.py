"""Linen modules that own parameters; the maths is in ``ops``. Every parameter carries its logical
axes.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.mlp import GatedMlpConfig
from llm_jax.config.model import LayerNormConfig, RMSNormConfig
from llm_jax.models.parameters import declared, weight
from llm_jax.models.sharded_attention import sharded_attention
from llm_jax.ops import positions
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.cache import Chunk, KeyValueCache
from llm_jax.ops.masks import Mask
from llm_jax.ops.nn import ACTIVATIONS, gated, layer_norm, rms_norm
from llm_jax.ops.weights import Weight, matmul, matmul_group
from llm_jax.sharding import constrain


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
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        if (self.kind or c.norm.kind) == "rms":
            unit_offset = isinstance(c.norm, RMSNormConfig) and c.norm.unit_offset
            first = zeros if unit_offset else ones
            scale = self.param("scale", declared(first, ["norm"], "norm"), (width,))
            return rms_norm(x, scale, eps=c.norm.eps, unit_offset=unit_offset)
        scale = self.param("scale", declared(ones, ["norm"], "norm"), (width,))
        bias = None
        if isinstance(c.norm, LayerNormConfig) and c.norm.bias:
            bias = self.param("bias", declared(zeros, ["norm"], "bias"), (width,))
        return layer_norm(x, scale, bias, eps=c.norm.eps)


# Logical axes with their sizes.
Sizes = tuple[tuple[str, int], ...]


class Dense(nn.Module):
    """A product of the trailing axes ``inputs`` of x and a kernel [inputs, outputs], and a bias.

    ``kernel`` may be any ``ops.weights.Weight``. ``group_index``: see ``products``.
    """

    inputs: Sizes
    outputs: Sizes
    std: float
    use_bias: bool = False
    group_index: int | None = None

    def setup(self) -> None:
        axes, shape = zip(*self.inputs, *self.outputs)
        contract = range(len(self.inputs))
        normal = nn.initializers.normal(self.std)
        init = declared(normal, axes, "matrix", contract, self.group_index)
        self.kernel: Weight = weight(self, "kernel", init, shape)
        if self.use_bias:
            axes, shape = zip(*self.outputs)
            zeros = declared(nn.initializers.zeros, axes, "bias")
            self.bias: Array = self.param("bias", zeros, shape)

    def __call__(self, x: Array) -> Array:
        return self.add_bias(matmul(x, self.kernel, len(self.inputs)))

    def add_bias(self, y: Array) -> Array:
        """y [..., outputs] of a product with the kernel, named for ``execution.remat``."""
        y = checkpoint_name(y, "dot")
        if not self.use_bias:
            return y
        return y + jnp.expand_dims(self.bias.astype(y.dtype), range(y.ndim - len(self.outputs)))


def products(x: Array, layers: list[Dense]) -> list[Array]:
    """What each of ``layers`` makes of x, which all read over one input axis. Their ``group_index``
    counts from 0.
    """
    ys = matmul_group(x, [layer.kernel for layer in layers])
    return [layer.add_bias(y) for layer, y in zip(layers, ys)]


class Kernel(nn.Module):
    """One parameter ``kernel``, for products that are not those of ``Dense``. Its first axis is
    what a product sums over.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    std: float

    @nn.compact
    def __call__(self) -> Weight:
        normal = nn.initializers.normal(self.std)
        return weight(self, "kernel", declared(normal, self.axes, "matrix", [0]), self.shape)


class Sink(nn.Module):
    """A logit of each head [N] for the softmax of attention (``ModelConfig.attention_sinks``)."""

    heads: int
    std: float

    @nn.compact
    def __call__(self) -> Array:
        normal = nn.initializers.normal(self.std)
        return self.param("bias", declared(normal, ["heads"], "sink"), (self.heads,))


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
        H, N = c.head_dim, c.attention.num_heads
        q, k, v = self._projections(x)
        over = c.attention.normalized_axes
        if over:
            q, k = (
                Norm(c, "rms", over, name="query_norm")(q),
                Norm(c, "rms", over, name="key_norm")(k),
            )
        if angles is not None:
            q, k = positions.rotate(q, *angles), positions.rotate(k, *angles)
        q = checkpoint_name(place(self, q, "batch", length, "act_heads", "head_dim"), "query")
        k = checkpoint_name(place(self, k, "batch", length, "act_kv_heads", "head_dim"), "key")
        v = checkpoint_name(place(self, v, "batch", length, "act_kv_heads", "head_dim"), "value")
        sinks = Sink(N, std, name="sink")() if c.attention.sinks else None
        how = {
            "scale": c.attention.scale or H**-0.5,
            "softcap": c.attention.softcap,
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
        heads = ("heads", N), ("head_dim", c.value_dim)
        out = Dense(
            heads, (("embed", c.embed_dim),), residual_std(c), c.attention.out_bias, name="out"
        )
        return out(y), cache

    def _projections(self, x: Array) -> list[Array]:
        """[B, T, D] -> queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, H']"""
        c = self.config
        sizes = {
            "query": (("heads", c.attention.num_heads), ("head_dim", c.head_dim)),
            "key": (("kv_heads", c.attention.kv_heads), ("head_dim", c.head_dim)),
            "value": (("kv_heads", c.attention.kv_heads), ("head_dim", c.value_dim)),
        }
        inputs = (("embed", c.embed_dim),)
        layers = [
            Dense(inputs, outputs, c.init_std, c.attention.qkv_bias, group_index=i, name=name)
            for i, (name, outputs) in enumerate(sizes.items())
        ]
        return products(x, layers)


class Mlp(nn.Module):
    """Gated or plain feed-forward layer of ``hidden`` units F. [B, T, D] -> [B, T, D]. ``length``:
    logical axis of T.
    """

    config: ModelConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Array, length: str | None) -> Array:
        c = self.config
        embed, mlp = (("embed", c.embed_dim),), (("mlp", self.hidden),)
        up = Dense(embed, mlp, c.init_std, c.mlp.bias, name="up")(x)
        if isinstance(c.mlp, GatedMlpConfig):
            gate = Dense(embed, mlp, c.init_std, c.mlp.bias, name="gate")(x)
            hidden = gated(
                gate, up, activation=c.mlp.activation, clamp=c.mlp.clamp, up_offset=c.mlp.up_offset
            )
        else:
            hidden = ACTIVATIONS[c.mlp.activation](up)
        hidden = checkpoint_name(place(self, hidden, "batch", length, "act_mlp"), "mlp_hidden")
        return Dense(mlp, embed, residual_std(c), c.mlp.bias, name="down")(hidden)


def place(module: nn.Module, x: Array, *axes: str | None) -> Array:
    # At init the batch is a stand-in of one row, which no mesh could split.
    return x if module.is_initializing() else constrain(x, *axes)


def residual_std(c: ModelConfig) -> float:
    # GPT-2, section 2.3: keeps the variance of the residual stream independent of depth.
    return c.init_std / (2 * c.num_layers) ** 0.5
