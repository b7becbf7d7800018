"""The TPU's attention kernel (splash, of jax's Pallas kernels) for causal masks with windows and
segments.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.masks import Mask

_LANES = 128
_BLOCK = 512


def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: Array | None = None,
    interpret: bool = False,
) -> Array:
    """q: [B, T, N, H], k and v: [B, T, K, H] -> [B, T, N, H]; what is on one device, so inside
    ``shard_map`` on several. The values' H may be another; sinks: [N] or None, as in
    ``ops.attention``.

    interpret: run the kernel's program without a TPU, slowly. Rows are filled up to a multiple of
    128, which no token sees. Raises ValueError unless the mask is causal, of queries and keys of
    the same rows.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, T, N, _), S = q.shape, k.shape[1]
    if T != S or not mask.causal:
        got = f"{T} queries of {S} keys, causal={mask.causal}"
        raise ValueError(
            f"attention backend 'splash' takes causal masks over one row, not {got}; use backend"
            " 'blockwise'"
        )
    q_segments, k_segments = mask.q_segments, mask.k_segments
    segments = (
        None
        if q_segments is None or k_segments is None
        else kernel.SegmentIds(q_segments, k_segments)
    )
    q, k, v, segments = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, -T % _LANES), *((0, 0),) * (x.ndim - 2))),
        (q, k, v, segments),
    )
    length = q.shape[1]
    shape = (length, length)
    one = (
        masks.LocalMask(shape, (mask.window - 1, 0), 0) if mask.window else masks.CausalMask(shape)
    )
    block = next(size for size in range(_BLOCK, 0, -_LANES) if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([one] * N),
        block_sizes=kernel.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))
    out = jax.vmap(attend, in_axes=(0, 0, 0, None if segments is None else 0, None))(
        *heads_first, segments, sinks
    )
    return jnp.swapaxes(out, 1, 2)[:, :T]
