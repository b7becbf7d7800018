"""Attention of a decoder's tokens over what an encoder read."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.layers import Dense, Norm, place, residual_std
from llm_jax.models.sharded_attention import sharded_attention
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.cache import CrossCache
from llm_jax.ops.masks import Mask


class Memory(NamedTuple):
    """What an encoder read. hidden: its output [B, S, D], or None where keys and values are in the
    cache · segments: int32 [B, S], or None where all is one.
    """

    hidden: Array | None
    segments: Array | None

    def mask(self, segments: Array) -> Mask:
        """Of queries with ``segments`` [B, T]: each sees all of its own segment."""
        return Mask(causal=False, q_segments=segments, k_segments=self.segments)


class CrossAttention(nn.Module):
    """Projections, q/k norm, and attention over the encoder's output, or over the keys and values
    made of it before.
    """

    config: ModelConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        length: str | None,
        memory: Array | None,
        mask: Mask,
        cache: CrossCache | None,
    ) -> tuple[Array, CrossCache | None]:
        """x: [B, T, D] · length: logical axis of T · memory: [B, S, D], or None where its keys and
        values are in the cache.

        Returns [B, T, D] and the cache, with the keys and values of a memory written.
        """
        c, std = self.config, self.config.init_std
        H, N, K = c.head_dim, c.attention.num_heads, c.attention.kv_heads

        def norm(name, x):
            over = c.attention.normalized_axes
            return Norm(c, "rms", over, name=name)(x) if over else x

        embed, of_keys = (("embed", c.embed_dim),), (("kv_heads", K), ("head_dim", H))
        of_queries = ("heads", N), ("head_dim", H)
        q = norm("query_norm", Dense(embed, of_queries, std, c.attention.qkv_bias, name="query")(x))
        q = checkpoint_name(place(self, q, "batch", length, "act_heads", "head_dim"), "query")
        if memory is None:
            assert cache is not None
            k, v = (slots.astype(q.dtype) for slots in cache.read())
        else:
            k = norm(
                "key_norm", Dense(embed, of_keys, std, c.attention.qkv_bias, name="key")(memory)
            )
            v = Dense(embed, of_keys, std, c.attention.qkv_bias, name="value")(memory)
            k = checkpoint_name(place(self, k, "batch", length, "act_kv_heads", "head_dim"), "key")
            v = checkpoint_name(
                place(self, v, "batch", length, "act_kv_heads", "head_dim"), "value"
            )
            cache = None if cache is None else cache.write(k, v)
        scale, softcap = c.attention.scale or H**-0.5, c.attention.softcap
        if cache is not None or self.is_initializing():
            y = attention(q, k, v, mask, scale=scale, softcap=softcap, backend="xla")
        else:
            y = sharded_attention(
                q, k, v, mask, self.execution, length, scale=scale, softcap=softcap
            )
        if not BACKENDS[self.execution.attention].fused:
            y = checkpoint_name(y, "attention_out")
        return Dense(of_queries, embed, residual_std(c), c.attention.out_bias, name="out")(y), cache
