"""The TPU's splash attention kernel (of jax's Pallas kernels): causal masks, windows, segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.masks import Mask
from llm_jax.ops.meshes import varies

# Rows are padded to a multiple of the lanes; a block of the kernel has at most _BLOCK positions.
_LANES = 128
_BLOCK = 512
# The sizes of blocks that the kernel has, forward and backward.
_BLOCKS = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")


def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Causal attention on one device; on several, call it inside ``shard_map``.

    The kernel has no type for values that differ over the axes of a ``shard_map``: give it
    ``check_vma=False``. It has gradients of the first order alone: no forward mode.

    Rows are padded to a multiple of 128 with tokens that no query sees.

    Args:
        q: [B, T, N, H].
        k: [B, T, K, H].
        v: [B, T, K, H'].
        mask: causal, of queries and keys of the same rows.
        scale: multiplies q·k; default H**-0.5.
        softcap: of the scores; 0 is none.
        sinks: [N] or None, as in ``ops.attention``.
        interpret: run the kernel's program without a TPU, slowly.

    Returns:
        [B, T, N, H'].

    Raises:
        ValueError: the mask is not causal, or queries and keys are of other rows; or it is called
            in a ``shard_map`` that checks types.
    """
    length = q.shape[1]
    if any(varies(x) for x in (q, k, v)):
        raise ValueError(
            "attention backend 'splash' is called in a shard_map that checks varying types; give"
            " shard_map check_vma=False, or use backend 'blockwise'"
        )
    if length != k.shape[1] or not mask.causal:
        raise ValueError(
            f"attention backend 'splash' takes causal masks over one row, not {length} queries of"
            f" {k.shape[1]} keys, causal={mask.causal}; use backend 'blockwise'"
        )
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    segments = None
    if mask.q_segments is not None and mask.k_segments is not None:
        segments = SegmentIds(mask.q_segments, mask.k_segments)
    q, k, v, segments = jax.tree.map(_padded, (q, k, v, segments))
    attend = _kernel(
        q.shape[1], q.shape[2], window=mask.window, softcap=softcap, interpret=interpret
    )
    of_rows = jax.vmap(attend, in_axes=(0, 0, 0, None if segments is None else 0, None))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = _heads_first(q * jnp.asarray(scale, q.dtype))
    out = of_rows(q, _heads_first(k), _heads_first(v), segments, sinks)
    return _heads_first(out)[:, :length]


def _kernel(
    length: int, heads: int, *, window: int, softcap: float, interpret: bool
) -> Callable[..., Array]:
    """The kernel of one row: (q, k, v [N, T, H], segments, sinks) -> [N, T, H']."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    of_head: Any = masks.CausalMask(shape)
    if window:
        of_head = masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(size for size in range(_BLOCK, 0, -_LANES) if length % size == 0)
    sizes: dict[str, Any] = {f"block_{name}": block for name in _BLOCKS}
    return kernel.make_splash_mha(
        masks.MultiHeadMask([of_head] * heads),
        block_sizes=kernel.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )


def _padded(x: Array) -> Array:
    """x [B, T, …] with T rounded up to a multiple of the lanes, filled with 0."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), *((0, 0),) * (x.ndim - 2)))


def _heads_first(x: Array) -> Array:
    """[B, T, N, H] as [B, N, T, H], or the reverse."""
    return jnp.swapaxes(x, 1, 2)
