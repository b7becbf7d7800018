"""Self-attention of a block, and what all three kinds of attention share: the modules. The maths is
in ``ops.attention``.
"""

from __future__ import annotations

import flax.linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.inputs import LayerInput
from llm_jax.models.layers import Dense, Norm, place, products, residual_std
from llm_jax.models.paged_attention import paged_attention
from llm_jax.models.parameters import declared, parameter
from llm_jax.models.sharded_attention import sharded_attention
from llm_jax.ops import positions
from llm_jax.ops.attention import BACKENDS, Options, attention
from llm_jax.ops.cache import Chunk, KeyValueCache, PagedKeyValueCache
from llm_jax.ops.masks import Mask

# The cache of a layer that keeps the keys and values of each head.
HeadsCache = KeyValueCache | PagedKeyValueCache


class Sink(nn.Module):
    """A logit of each head [N] for the softmax of attention (``model.attention.sinks``)."""

    heads: int
    std: float

    @nn.compact
    def __call__(self) -> Array:
        normal = nn.initializers.normal(self.std)
        return parameter(self, "bias", declared(normal, ["heads"], "sink"), (self.heads,))


class AttentionModule(nn.Module):
    """What ``Attention``, ``LatentAttention`` and ``CrossAttention`` share."""

    config: ModelConfig
    execution: ExecutionConfig

    def _scale(self) -> float:
        """What multiplies q·k."""
        return self.config.attention_scale

    def _sinks(self) -> Array | None:
        """Attention sinks [N], if the model has them."""
        c = self.config
        return Sink(c.attention.num_heads, c.init_std, name="sink")() if c.attention.sinks else None

    def _head_norm(self, name: str, x: Array) -> Array:
        """Queries or keys [B, T, N, H], normalized if the model does so."""
        c = self.config
        over = c.attention.normalized_axes
        if not over:
            return x
        return Norm(c, "rms", over, name=name)(x)

    def _placed(self, name: str, x: Array, length: str | None, heads: str) -> Array:
        """x [B, T, N, H] on the mesh, named for ``execution.remat``."""
        return checkpoint_name(place(self, x, "batch", length, heads, "head_dim"), name)

    def _attend(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Mask,
        *,
        length: str | None,
        over_cache: bool,
        sinks: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        """Attention of q [B, T, N, H] over k [B, S, K, H] and v [B, S, K, H'].

        One query a row gains nothing from a fused kernel, and only the reference backend takes
        keys of a cache.
        """
        scale = self._scale()
        softcap = self.config.attention.softcap
        if over_cache or self.is_initializing():
            return attention(
                q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias, backend="xla"
            )
        return sharded_attention(
            q,
            k,
            v,
            mask,
            execution=self.execution,
            length=length,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            bias=bias,
        )

    def _output(self, y: Array) -> Array:
        """The output projection of y [B, T, N, H']: [B, T, D]."""
        c = self.config
        if not BACKENDS[self.execution.attention].fused:
            y = checkpoint_name(y, "attention_out")
        heads = (("heads", c.attention.num_heads), ("head_dim", y.shape[-1]))
        embed = (("embed", c.embed_dim),)
        return Dense(heads, embed, residual_std(c), c.attention.out_bias, name="out")(y)


class Attention(AttentionModule):
    """Projections, q/k norm, rotation, and attention over the row or over the cache."""

    @nn.compact
    def __call__(
        self, x: Array, inputs: LayerInput, cache: HeadsCache | None
    ) -> tuple[Array, HeadsCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache with the chunk written."""
        length = inputs.axes.inside
        chunk = inputs.chunk
        q, k, v = self._projections(x)
        q = self._head_norm("query_norm", q)
        k = self._head_norm("key_norm", k)
        if inputs.angles is not None:
            q = positions.rotate(q, *inputs.angles)
            k = positions.rotate(k, *inputs.angles)
        q = self._placed("query", q, length, "act_heads")
        k = self._placed("key", k, length, "act_kv_heads")
        v = self._placed("value", v, length, "act_kv_heads")
        sinks = self._sinks()
        if cache is not None and chunk is not None and not chunk.begin:
            cache, y = self._attend_over(cache, chunk, (q, k, v), inputs, sinks)
            return self._output(y), cache
        if cache is not None and chunk is not None:
            cache, k, v = cache.write(chunk, k, v)
        y = self._attend(
            q,
            k,
            v,
            inputs.mask,
            length=length,
            over_cache=False,
            sinks=sinks,
            bias=inputs.bias,
        )
        return self._output(y), cache

    def _attend_over(
        self,
        cache: HeadsCache,
        chunk: Chunk,
        qkv: tuple[Array, Array, Array],
        inputs: LayerInput,
        sinks: Array | None,
    ) -> tuple[HeadsCache, Array]:
        """``cache`` with a chunk written, and attention of its queries over all of it."""
        softcap = self.config.attention.softcap
        q, k, v = qkv
        if isinstance(cache, PagedKeyValueCache) and cache.kernel:
            cache = cache.append(chunk, k, v)
            window = inputs.mask.window
            y = paged_attention(
                q, cache, chunk, scale=self._scale(), softcap=softcap, window=window
            )
            return cache, y
        options = Options(self._scale(), softcap, sinks, inputs.bias)
        return cache.attend(chunk, q, k, v, inputs.mask, options)

    def _projections(self, x: Array) -> list[Array]:
        """[B, T, D] -> queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, H']."""
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
