"""Multi-head latent attention in place of a block's attention: the modules; the maths is in
``ops.latent``.
"""

from __future__ import annotations

import flax.linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.layers import Dense, Kernel, Norm, Sink, place, residual_std
from llm_jax.models.sharded_attention import sharded_attention
from llm_jax.ops import positions
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.cache import Chunk, LatentCache
from llm_jax.ops.latent import absorbed_attention, absorbing_pays, expand
from llm_jax.ops.masks import Mask
from llm_jax.ops.weights import to_array


class LatentAttention(nn.Module):
    """Queries, of the input or of a latent of it; a latent for the keys and values of all heads;
    attention over the row or the cache.
    """

    config: ModelConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        length: str | None,
        mask: Mask,
        angles: tuple[Array, Array] | None,
        cache: LatentCache | None,
        chunk: Chunk | None = None,
    ) -> tuple[Array, LatentCache | None]:
        """x: [B, T, D]; length: logical axis of T; chunk: what the call appends to the cache, with
        one.

        Returns [B, T, D] and the written cache.
        """
        c, std = self.config, self.config.init_std
        sizes = c.latent
        assert sizes is not None
        H, N, V = c.head_dim, sizes.num_heads, c.value_dim
        C, R = sizes.kv_latent, sizes.rope_dim
        q = self._queries(x)
        embed, axes = (("embed", c.embed_dim),), ("kv_latent", "heads", "head_dim")
        latent = Dense(embed, (("to_latent", C),), std, c.attention.qkv_bias, name="latent")(x)
        latent = Norm(c, "rms", name="latent_norm")(latent)
        rotated = Dense(embed, (("head_dim", R),), std, c.attention.qkv_bias, name="rotated")(x)
        key = to_array(Kernel(axes, (C, N, H - R), std, name="key")(), x.dtype)
        value = to_array(Kernel(axes, (C, N, V), std, name="value")(), x.dtype)
        if angles is not None:
            q, rotated = (
                positions.rotate(q, *angles),
                positions.rotate(rotated[:, :, None], *angles)[:, :, 0],
            )
        q = checkpoint_name(place(self, q, "batch", length, "act_heads", "head_dim"), "query")
        sinks = Sink(N, std, name="sink")() if c.attention.sinks else None
        how = {
            "scale": c.attention.scale or H**-0.5,
            "softcap": c.attention.softcap,
            "sinks": sinks,
        }
        later = chunk is not None and not chunk.begin
        if cache is not None and chunk is not None:
            cache, latent, rotated = cache.write(chunk, latent, rotated)
        if later and absorbing_pays(q.shape[1], H, V, C, R):
            y = absorbed_attention(q, latent, rotated, key, value, mask=mask, **how)
        else:
            k, v = expand(latent, rotated, key, value)
            k = checkpoint_name(place(self, k, "batch", length, "act_heads", "head_dim"), "key")
            v = checkpoint_name(place(self, v, "batch", length, "act_heads", "head_dim"), "value")
            if later or self.is_initializing():
                y = attention(q, k, v, mask, backend="xla", **how)
            else:
                y = sharded_attention(q, k, v, mask, self.execution, length, **how)
        if not BACKENDS[self.execution.attention].fused:
            y = checkpoint_name(y, "attention_out")
        out = Dense(
            (("heads", N), ("head_dim", V)),
            embed,
            residual_std(c),
            c.attention.out_bias,
            name="out",
        )
        return out(y), cache

    def _queries(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, N, H]"""
        c = self.config
        outputs = ("heads", c.attention.num_heads), ("head_dim", c.head_dim)
        embed = (("embed", c.embed_dim),)
        assert c.latent is not None
        width = c.latent.q_latent
        if not width:
            return Dense(embed, outputs, c.init_std, name="query")(x)
        to_latent = (("to_latent", width),)
        latent = Dense(embed, to_latent, c.init_std, c.attention.qkv_bias, name="query_latent")(x)
        latent = Norm(c, "rms", name="query_norm")(latent)
        return Dense((("latent", width),), outputs, c.init_std, name="query")(latent)
