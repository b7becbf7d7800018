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
from llm_jax.ops import kv_cache, positions
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.latent import absorbed_attention, absorbing_pays, expand
from llm_jax.ops.masks import Mask


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
        cache: tuple[Array, Array, Array | None] | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """x: [B, T, D]; length: logical axis of T; cache: latents [B, S, C], rotated parts [B, S,
        R] and length ([B], or None if it is empty), or None.

        Returns [B, T, D] and the written latents and rotated parts.
        """
        c, std = self.config, self.config.init_std
        H, N, V, C, R = c.head_size, c.num_heads, c.value_size, c.kv_latent, c.rope_dim
        q = self._queries(x)
        latent = Norm(c, "rms", name="latent_norm")(
            Dense(("embed",), ("to_latent",), (C,), std, c.qkv_bias, name="latent")(x)
        )
        rotated = Dense(("embed",), ("head_dim",), (R,), std, c.qkv_bias, name="rotated")(x)
        key = Kernel(("latent", "heads", "head_dim"), (C, N, H - R), std, name="key")().astype(
            x.dtype
        )
        value = Kernel(("latent", "heads", "head_dim"), (C, N, V), std, name="value")().astype(
            x.dtype
        )
        if angles is not None:
            q, rotated = (
                positions.rotate(q, *angles),
                positions.rotate(rotated[:, :, None], *angles)[:, :, 0],
            )
        q = checkpoint_name(place(self, q, "batch", length, "act_heads", "head_dim"), "query")
        sinks = Sink(N, std, name="sink")() if c.attention_sinks else None
        how, written = (
            {"scale": c.attention_scale or H**-0.5, "softcap": c.attention_softcap, "sinks": sinks},
            None,
        )
        later = cache is not None and cache[2] is not None
        if cache is not None:
            written = (
                kv_cache.write(cache[0], latent, cache[2], 1),
                kv_cache.write(cache[1], rotated, cache[2], 1),
            )
            if later:
                latent, rotated = (a.astype(q.dtype) for a in written)
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
        return (
            Dense(
                ("heads", "head_dim"),
                ("embed",),
                (c.embed_dim,),
                residual_std(c),
                c.out_bias,
                name="out",
            )(y),
            written,
        )

    def _queries(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, N, H]"""
        c, outputs = self.config, ("heads", "head_dim")

        def make(inputs, bias):
            return Dense(
                inputs, outputs, (c.num_heads, c.head_size), c.init_std, bias, name="query"
            )

        if not c.q_latent:
            return make(("embed",), False)(x)
        latent = Dense(
            ("embed",), ("to_latent",), (c.q_latent,), c.init_std, c.qkv_bias, name="query_latent"
        )(x)
        return make(("latent",), False)(Norm(c, "rms", name="query_norm")(latent))
