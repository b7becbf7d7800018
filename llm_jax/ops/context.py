"""Attention over rows whose positions are split over devices.

Keys pass round a ring of devices, or an all-to-all exchanges positions for heads. All of it runs
inside ``shard_map``; ``axis`` is the mesh axis of the positions.
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
    """The order of tokens in which a causal mask gives all devices of a ring the same work.

    The row is cut into 2·ways pieces; device i has pieces i and 2·ways - 1 - i (zigzag order).

    Args:
        length: T, tokens of a row.
        ways: devices of the ring.

    Returns:
        int32 [T], the token at each place.

    Raises:
        ValueError: 2·ways does not divide the length.
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
    """Blockwise attention of this device's queries over the keys of the whole row.

    Args:
        q: [B, T/C, N, H] on an axis of C devices.
        k: [B, T/C, K, H].
        v: [B, T/C, K, H'].
        mask: which keys a query sees; without q_index rows are in order.
        axis: the mesh axis.
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        sinks: [N] or None.

    Returns:
        [B, T/C, N, H'].
    """
    if mask.q_index is None:
        rows, length = q.shape[:2]
        places = jax.lax.axis_index(axis) * length + jnp.arange(length)
        index = jnp.broadcast_to(places[None, :], (rows, length))
        mask = dataclasses.replace(mask, q_index=index, k_index=index)
    # A block that spans the two pieces of a zigzag row would see nearly all others.
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
    """``attend`` over whole rows of this device's heads (Jacobs et al. 2023, DeepSpeed-Ulysses).

    Rows are in order. Key heads are repeated until the devices divide them.

    Args:
        q: [B, T/C, N, H] on an axis of C devices.
        k: [B, T/C, K, H].
        v: [B, T/C, K, H'].
        mask: which keys a query sees.
        sinks: [N] or None.
        axis: the mesh axis.
        attend: called as attend(q, k, v, mask, sinks) on whole rows.

    Returns:
        [B, T/C, N, H'].

    Raises:
        ValueError: the devices do not divide the query heads.
    """
    ways = jax.lax.axis_size(axis)
    N, K = q.shape[2], k.shape[2]
    if N % ways:
        raise ValueError(
            f"{N} heads on a device (model.attention.num_heads over mesh.tensor) do not divide over"
            f" mesh.context {ways}; use {-(-N // ways) * ways} on a device, execution.context ring,"
            " or another mesh"
        )
    repeats = math.lcm(K, ways) // K
    if repeats > 1:
        k = jnp.repeat(k, repeats, axis=2)
        v = jnp.repeat(v, repeats, axis=2)

    def to_heads(x: Array) -> Array:
        return jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)

    def whole(x: Array | None) -> Array | None:
        return None if x is None else jax.lax.all_gather(x, axis, axis=1, tiled=True)

    segments = whole(mask.q_segments)
    mutual = whole(mask.q_mutual)
    mask = dataclasses.replace(
        mask, q_segments=segments, k_segments=segments, q_mutual=mutual, k_mutual=mutual
    )
    if sinks is not None:
        heads = N // ways
        first = jax.lax.axis_index(axis) * heads
        sinks = jax.lax.dynamic_slice_in_dim(sinks, first, heads)
    out = attend(to_heads(q), to_heads(k), to_heads(v), mask, sinks)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)
