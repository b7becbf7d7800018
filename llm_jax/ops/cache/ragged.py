"""Attention over pages by JAX's ragged paged attention, a kernel for TPU that reads each row's own
pages and no others.

Its limits, and what this module does about them: heads are padded to a multiple of 128 wide, and
their number to a power of two. A head of more than 128 needs a single key/value head a device, and
one of more than 256 is not tried. It has no sinks, no bias, and no scales of its own for each int8
vector.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk

_LANES = 128
_WIDEST = 256
# Tokens of keys and values that are fetched at once, and the bytes that two such blocks may take.
_BLOCK = 512
_BLOCK_BYTES = 8 * 2**20
_QUERIES = 32


def kernel_sizes(heads: int, width: int) -> tuple[int, int]:
    """(K', W) to which K heads of H dimensions are padded."""
    return 1 << (heads - 1).bit_length(), -(-width // _LANES) * _LANES


def kernel_takes(heads: int, width: int, ways: int) -> bool:
    """Whether the kernel takes K heads of H dimensions that are split over ``ways`` devices."""
    padded, wide = kernel_sizes(heads, width)
    if padded % ways or wide > _WIDEST:
        return False
    return wide == _LANES or padded == ways


def ragged_attention(
    q: Array, pages: Array, chunk: Chunk, *, scale: float, softcap: float, window: int
) -> Array:
    """Causal attention of a chunk's queries over the pages of their rows, on one TPU device.

    Args:
        q: [B, T, N', W], N' a multiple of K', as padded as the pages are.
        pages: [P, page, 2K', W] with the chunk written.
        chunk: the call, with its table.
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        window: positions that a query sees; 0 is all.

    Returns:
        [B, T, N', W]; padding means nothing.
    """
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    assert chunk.table is not None
    B, T, N, W = q.shape
    # A row that gets nothing has one query all the same, so that the kernel's transfers match.
    counts = jnp.maximum(chunk.count, 1)
    ends = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    at = jnp.arange(B * T)
    row = jnp.minimum(jnp.searchsorted(ends[1:], at, side="right"), B - 1)
    queries = q[row, jnp.clip(at - ends[row], 0, T - 1)]
    out = ragged_paged_attention(
        queries,
        pages,
        jnp.maximum(chunk.end, 1),
        jnp.maximum(chunk.table, 0),
        ends,
        jnp.array([B], jnp.int32),
        sm_scale=scale,
        sliding_window=window or None,
        soft_cap=softcap or None,
        num_kv_pages_per_block=_pages_a_block(pages, chunk.table.shape[1]),
        num_queries_per_block=min(_QUERIES, B * T),
    )
    place = ends[:-1, None] + jnp.arange(T)[None, :]
    return out[jnp.minimum(place, B * T - 1)].reshape(B, T, N, W)


def _pages_a_block(pages: Array, entries: int) -> int:
    _, size, heads, width = pages.shape
    of_page = 2 * size * heads * width * pages.dtype.itemsize
    return max(1, min(entries, _BLOCK // size, _BLOCK_BYTES // of_page))
