"""Attention over rows whose positions are split over devices: round a ring, or by exchanging
positions for heads.

All of it runs inside ``shard_map``; ``axis`` is the mesh axis of the positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.masks import Mask


def balanced(length: int, ways: int) -> np.ndarray:
    """int32 [T]: which token stands at each place, so that under a causal mask all of ``ways``
    devices have the same work.

    The row is cut into 2·ways pieces; device i has pieces i and 2·ways - 1 - i. Raises ValueError
    unless 2·ways divides the length.
    """
    if length % (2 * ways):
        raise ValueError(
            f"a row of {length} tokens does not divide into {2 * ways} pieces for a ring of {ways}"
            " devices"
        )
    pieces = np.arange(length, dtype=np.int32).reshape(2 * ways, -1)
    return np.concatenate([pieces[[i, 2 * ways - 1 - i]].reshape(-1) for i in range(ways)])


def ring_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    axis: str,
    scale: float,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """``blockwise_attention`` of this device's queries over the keys of the whole row. Without
    q_index, rows stand in order.
    """
    if mask.q_index is None:
        rows, length = q.shape[:2]
        index = jnp.broadcast_to(
            (jax.lax.axis_index(axis) * length + jnp.arange(length))[None, :], (rows, length)
        )
        mask = dataclasses.replace(mask, q_index=index, k_index=index)
    # A block across the two pieces of a balanced row would see, and be seen by, nearly everybody.
    block = max(1, min(512, q.shape[1] // 2))
    return blockwise_attention(
        q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, ring=axis, block=block
    )


Attend = Callable[[Array, Array, Array, Mask, Array | None], Array]


def all_to_all_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    sinks: Array | None = None,
    *,
    axis: str,
    attend: Attend,
) -> Array:
    """``attend`` over whole rows of this device's share of the heads (Jacobs et al. 2023,
    DeepSpeed-Ulysses). Rows stand in order.

    q: [B, T/C, N, H], k and v: [B, T/C, K, H] for an axis of C devices; key heads are repeated
    until C divides them. sinks: [N] or None. Raises ValueError when C does not divide the query
    heads.
    """
    ways, (N, K) = jax.lax.axis_size(axis), (q.shape[2], k.shape[2])
    if N % ways:
        raise ValueError(
            f"{N} heads on a device (model.num_heads over mesh.tensor) do not divide over"
            f" mesh.context {ways}; use {-(-N // ways) * ways} on a device, execution.context ring,"
            " or another mesh"
        )
    repeats = math.lcm(K, ways) // K

    def to_heads(x: Array) -> Array:
        return jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)

    def whole(x: Array | None) -> Array | None:
        return None if x is None else jax.lax.all_gather(x, axis, axis=1, tiled=True)

    k, v = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (k, v))
    segments = whole(mask.q_segments)
    prefix = whole(mask.q_prefix)
    mask = dataclasses.replace(
        mask, q_segments=segments, k_segments=segments, q_prefix=prefix, k_prefix=prefix
    )
    mine = (
        None
        if sinks is None
        else jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(axis) * (N // ways), N // ways)
    )
    out = attend(to_heads(q), to_heads(k), to_heads(v), mask, mine)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)
