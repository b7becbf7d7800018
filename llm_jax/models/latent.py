"""Multi-head latent attention in place of a block's attention: the module. The maths is in
``ops.latent``.
"""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from llm_jax.config import LatentAttentionConfig
from llm_jax.models.attention import AttentionModule
from llm_jax.models.inputs import LayerInput
from llm_jax.models.layers import Dense, Kernel, Norm
from llm_jax.ops import positions
from llm_jax.ops.cache import LatentCache
from llm_jax.ops.latent import absorbed_attention, absorbing_pays, expand
from llm_jax.ops.weights import to_array


class LatentAttention(AttentionModule):
    """Latent attention (DeepSeek-V2, section 2.1) over the row or over the cache.

    Queries are made of the input, or of a latent of it; keys and values of all heads of one latent.
    """

    @nn.compact
    def __call__(
        self, x: Array, inputs: LayerInput, cache: LatentCache | None
    ) -> tuple[Array, LatentCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache with the chunk written."""
        c = self.config
        sizes = self._sizes
        length = inputs.axes.inside
        chunk = inputs.chunk
        q = self._queries(x)
        latent, rotated = self._latent(x)
        key = self._kernel("key", c.head_dim - sizes.rope_dim, x)
        value = self._kernel("value", c.value_dim, x)
        if inputs.angles is not None:
            q = positions.rotate(q, *inputs.angles)
            rotated = positions.rotate(rotated[:, :, None], *inputs.angles)[:, :, 0]
        q = self._placed("query", q, length, "act_heads")
        sinks = self._sinks()
        over_cache = chunk is not None and not chunk.begin
        if cache is not None and chunk is not None:
            cache, latent, rotated = cache.write(chunk, latent, rotated)
        widths = (c.head_dim, c.value_dim, sizes.kv_latent, sizes.rope_dim)
        if over_cache and absorbing_pays(q.shape[1], *widths):
            y = absorbed_attention(
                q,
                latent,
                rotated,
                key,
                value,
                mask=inputs.mask,
                scale=self._scale(),
                softcap=c.attention.softcap,
                sinks=sinks,
            )
            return self._output(y), cache
        k, v = expand(latent, rotated, key, value)
        k = self._placed("key", k, length, "act_heads")
        v = self._placed("value", v, length, "act_heads")
        y = self._attend(q, k, v, inputs.mask, length=length, over_cache=over_cache, sinks=sinks)
        return self._output(y), cache

    @property
    def _sizes(self) -> LatentAttentionConfig:
        assert self.config.latent is not None
        return self.config.latent

    def _queries(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, N, H]."""
        c = self.config
        outputs = (("heads", c.attention.num_heads), ("head_dim", c.head_dim))
        embed = (("embed", c.embed_dim),)
        width = self._sizes.q_latent
        if not width:
            return Dense(embed, outputs, c.init_std, name="query")(x)
        to_latent = (("to_latent", width),)
        latent = Dense(embed, to_latent, c.init_std, c.attention.qkv_bias, name="query_latent")(x)
        latent = Norm(c, "rms", name="query_norm")(latent)
        return Dense((("latent", width),), outputs, c.init_std, name="query")(latent)

    def _latent(self, x: Array) -> tuple[Array, Array]:
        """[B, T, D] -> the latent of keys and values [B, T, C], and the part of the keys that is
        rotated [B, T, R].
        """
        c = self.config
        embed = (("embed", c.embed_dim),)
        to_latent = (("to_latent", self._sizes.kv_latent),)
        latent = Dense(embed, to_latent, c.init_std, c.attention.qkv_bias, name="latent")(x)
        latent = Norm(c, "rms", name="latent_norm")(latent)
        rotated = (("head_dim", self._sizes.rope_dim),)
        return latent, Dense(embed, rotated, c.init_std, c.attention.qkv_bias, name="rotated")(x)

    def _kernel(self, name: str, width: int, x: Array) -> Array:
        """A kernel [C, N, width] in the type of x."""
        c = self.config
        axes = ("kv_latent", "heads", "head_dim")
        shape = (self._sizes.kv_latent, c.attention.num_heads, width)
        return to_array(Kernel(axes, shape, c.init_std, name=name)(), x.dtype)
