"""The TPU's splash attention kernel (of jax's Pallas kernels): causal masks, windows, segments."""

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
    """Causal attention on one device; on several, call it inside ``shard_map``.

    Rows are padded to a multiple of 128 with tokens that no query sees.

    Args:
        q: [B, T, N, H].
        k: [B, T, K, H].
        v: [B, T, K, H'].
        mask: causal, of queries and keys of the same rows.
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        sinks: [N] or None, as in ``ops.attention``.
        interpret: run the kernel's program without a TPU, slowly.

    Returns:
        [B, T, N, H'].

    Raises:
        ValueError: the mask is not causal, or queries and keys are of other rows.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, T, N, _), S = q.shape, k.shape[1]
    if T != S or not mask.causal:
        raise ValueError(
            f"attention backend 'splash' takes causal masks over one row, not {T} queries of {S}"
            f" keys, causal={mask.causal}; use backend 'blockwise'"
        )
    segments = None
    if mask.q_segments is not None and mask.k_segments is not None:
        segments = kernel.SegmentIds(mask.q_segments, mask.k_segments)
    q, k, v, segments = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, -T % _LANES), *((0, 0),) * (x.ndim - 2))),
        (q, k, v, segments),
    )
    length = q.shape[1]
    shape = (length, length)
    near = (mask.window - 1, 0)
    one = masks.LocalMask(shape, near, 0) if mask.window else masks.CausalMask(shape)
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
