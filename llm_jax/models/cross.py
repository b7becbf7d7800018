"""Attention of a decoder's tokens to the output of an encoder."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from llm_jax.models.attention import AttentionModule
from llm_jax.models.inputs import LayerInput
from llm_jax.models.layers import Dense
from llm_jax.ops.cache import CrossCache


class CrossAttention(AttentionModule):
    """Projections, q/k norm, and attention to the encoder's output, or to the keys and values that
    the cache keeps of it.
    """

    @nn.compact
    def __call__(
        self, x: Array, inputs: LayerInput, cache: CrossCache | None
    ) -> tuple[Array, CrossCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache with the keys and values of ``inputs.memory``."""
        c = self.config
        length = inputs.axes.inside
        q = self._head_norm(
            "query_norm", self._projection("query", "heads", c.attention.num_heads, x)
        )
        q = self._placed("query", q, length, "act_heads")
        if inputs.memory is None:
            assert cache is not None
            k, v = (slots.astype(q.dtype) for slots in cache.read())
        else:
            k, v = self._keys_and_values(inputs.memory, length)
            cache = None if cache is None else cache.write(k, v)
        y = self._attend(q, k, v, inputs.memory_mask, length=length, over_cache=cache is not None)
        return self._output(y), cache

    def _keys_and_values(self, memory: Array, length: str | None) -> tuple[Array, Array]:
        """Keys and values [B, S, K, H] of an encoder's output [B, S, D]."""
        kv_heads = self.config.attention.kv_heads
        k = self._head_norm("key_norm", self._projection("key", "kv_heads", kv_heads, memory))
        v = self._projection("value", "kv_heads", kv_heads, memory)
        k = self._placed("key", k, length, "act_kv_heads")
        v = self._placed("value", v, length, "act_kv_heads")
        return k, v

    def _projection(self, name: str, axis: str, heads: int, x: Array) -> Array:
        """[B, T, D] -> [B, T, heads, H]."""
        c = self.config
        outputs = ((axis, heads), ("head_dim", c.head_dim))
        return Dense(
            (("embed", c.embed_dim),), outputs, c.init_std, c.attention.qkv_bias, name=name
        )(x)
