"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads made of one
small latent of each token.

latent: [B, S, C], and rotated: [B, S, R], the part of the keys that all heads share; key: [C, N, H
- R] and value: [C, N, H'] make the rest of each head of the latent. In a head's width H the rotated
part comes first. The rotation turns pairs (i, i + R/2) as everywhere in ``ops``; released weights
that turn neighbours (2i, 2i + 1) get their kernels' columns in this order when they are converted.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.ops.attention import masked_exponentials
from llm_jax.ops.cpu import project
from llm_jax.ops.masks import Mask


def expand(latent: Array, rotated: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Keys [B, S, N, H] and values [B, S, N, H'] of every head, as ``ops.attention`` takes them."""
    own, v = (checkpoint_name(project(latent, kernel, 1), "dot") for kernel in (key, value))
    shared = jnp.broadcast_to(rotated[:, :, None, :], (*own.shape[:3], rotated.shape[-1]))
    return jnp.concatenate([shared, own], axis=-1), v


def absorbed_attention(
    q: Array,
    latent: Array,
    rotated: Array,
    key: Array,
    value: Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """``attention`` of q: [B, T, N, H] over ``expand``, without making keys and values: their
    kernels work on the queries and on what attention gives (section 2.1.2), so that a token costs
    N·(2C + R) products for each of the S it sees. sinks: [N] or None.

    Returns [B, T, N, H'] in q's dtype.
    """
    R = rotated.shape[-1]
    to_latent = jnp.einsum("btnh,cnh->btnc", q[..., R:], key)
    scores = jnp.einsum("btnc,bsc->bnts", to_latent, latent, preferred_element_type=jnp.float32)
    scores = scores + jnp.einsum(
        "btnr,bsr->bnts", q[..., :R], rotated, preferred_element_type=jnp.float32
    )
    weights, total = masked_exponentials((scores * scale)[:, None], mask, softcap, sinks)
    weights = (weights / total)[:, 0].astype(latent.dtype)
    return jnp.einsum(
        "btnc,cnh->btnh", jnp.einsum("bnts,bsc->btnc", weights, latent), value
    ).astype(q.dtype)


def absorbing_pays(
    queries: int, heads_dim: int, value_dim: int, latent_dim: int, rope_dim: int
) -> bool:
    """Whether ``absorbed_attention`` of ``queries`` T takes fewer products for each key than
    ``expand`` and ``attention`` over it.

    For a key and a head: T·(2C + R), against C·(H - R + H') to make it and T·(H + H') to use it.
    """
    made = latent_dim * (heads_dim - rope_dim + value_dim)
    return queries * (2 * latent_dim + rope_dim) < made + queries * (heads_dim + value_dim)
