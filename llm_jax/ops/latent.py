"""Multi-head latent attention (DeepSeek-V2, section 2.1).

The keys and values of all heads are made of one small latent of each token. Shapes:

- latent [B, S, C]; rotated [B, S, R], the part of the keys that all heads share;
- key kernel [C, N, H - R] and value kernel [C, N, H'], which make the rest of each head.

In a head of width H the rotated part comes first. The rotation turns pairs (i, i + R/2), as
everywhere in ``ops``; the columns of released weights that turn neighbours (2i, 2i + 1) are
reordered when they are converted.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.ops.attention import masked_exponentials
from llm_jax.ops.cpu import project
from llm_jax.ops.masks import Mask, as_mask
from llm_jax.ops.precision import accumulator


def expand(latent: Array, rotated: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Keys [B, S, N, H] and values [B, S, N, H'] of every head, for ``ops.attention``."""
    own = checkpoint_name(project(latent, key, 1), "dot")
    v = checkpoint_name(project(latent, value, 1), "dot")
    shared = jnp.broadcast_to(rotated[:, :, None, :], (*own.shape[:3], rotated.shape[-1]))
    return jnp.concatenate([shared, own], axis=-1), v


def absorbed_attention(
    q: Array,
    latent: Array,
    rotated: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | None = Mask(),  # noqa: B008 (frozen)
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """``attention`` over ``expand`` without making keys and values (section 2.1.2).

    The kernels are applied to the queries and to the output instead, so that a token costs
    N·(2C + R) products for each of the S that it sees.

    Args:
        q: [B, T, N, H].
        latent: [B, S, C].
        rotated: [B, S, R].
        key: kernel [C, N, H - R].
        value: kernel [C, N, H'].
        mask: which keys a query sees.
        scale: multiplies q·k; default H**-0.5.
        softcap: of the scores; 0 is none.
        sinks: [N] or None.

    Returns:
        [B, T, N, H'] in q's dtype, 0 where a query sees no key.
    """
    R = rotated.shape[-1]
    mask = as_mask(mask, q.shape[0], q.shape[1], latent.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    acc = accumulator(q, latent)
    to_latent = jnp.einsum("btnh,cnh->btnc", q[..., R:], key)
    scores = jnp.einsum("btnc,bsc->bnts", to_latent, latent, preferred_element_type=acc)
    scores = scores + jnp.einsum("btnr,bsr->bnts", q[..., :R], rotated, preferred_element_type=acc)
    weights, total = masked_exponentials((scores * scale)[:, None], mask, softcap, sinks)
    weights = (weights / total)[:, 0].astype(latent.dtype)
    seen = jnp.einsum("bnts,bsc->btnc", weights, latent)
    return jnp.einsum("btnc,cnh->btnh", seen, value).astype(q.dtype)


def absorbing_pays(
    queries: int, heads_dim: int, value_dim: int, latent_dim: int, rope_dim: int
) -> bool:
    """Whether ``absorbed_attention`` takes fewer products a key than ``expand`` and ``attention``.

    For a key and a head: T·(2C + R) products, against C·(H - R + H') to make it and T·(H + H') to
    use it.

    Args:
        queries: T.
        heads_dim: H.
        value_dim: H'.
        latent_dim: C.
        rope_dim: R.
    """
    made = latent_dim * (heads_dim - rope_dim + value_dim)
    return queries * (2 * latent_dim + rope_dim) < made + queries * (heads_dim + value_dim)
