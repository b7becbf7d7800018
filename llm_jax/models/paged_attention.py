"""Attention over pages by TPU's kernel, each device over the rows, pages and heads that it has."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.models.pipeline import on_devices
from llm_jax.ops.cache import Chunk, PagedKeyValueCache, ragged_attention
from llm_jax.sharding import own_sizes, partition_spec


def paged_attention(
    q: Array,
    cache: PagedKeyValueCache,
    chunk: Chunk,
    *,
    scale: float,
    softcap: float,
    window: int,
) -> Array:
    """Causal attention of a chunk's queries over the pages of their rows.

    Args:
        q: [B, T, N, H].
        cache: with the chunk written, and made for the kernel.
        chunk: the call.
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        window: positions that a query sees; 0 is all.

    Returns:
        [B, T, N, H].
    """
    B, T, N, H = q.shape
    pages = cache.pages
    assert isinstance(pages, Array)
    padded, width = pages.shape[2] // 2, pages.shape[3]
    grouped = q.reshape(B, T, cache.heads, -1, H)
    missing = ((0, 0), (0, 0), (0, padded - cache.heads), (0, 0), (0, width - H))
    queries = jnp.pad(grouped, missing).reshape(B, T, -1, width)
    attend = partial(ragged_attention, scale=scale, softcap=softcap, window=window)
    if math.prod(own_sizes().values()) > 1:
        out = _on_each_device(attend, queries, pages, chunk)
    else:
        out = attend(queries, pages, chunk)
    out = out.reshape(B, T, padded, -1, width)[:, :, : cache.heads, :, :H]
    return out.reshape(B, T, N, H)


def _on_each_device(attend: partial[Array], q: Array, pages: Array, chunk: Chunk) -> Array:
    assert chunk.table is not None
    mesh_shape = jax.sharding.get_abstract_mesh().shape

    def on_device(q: Array, pages: Array, start: Array, count: Array, table: Array) -> Array:
        own = dataclasses.replace(chunk, start=start, count=count, table=table)
        return attend(q, pages, own)

    arrays = {
        "queries": (q, ("batch", None, "act_heads", None)),
        "pages": (pages, ("batch", None, "act_kv_heads", None)),
        "start": (chunk.start, ("batch",)),
        "count": (chunk.count, ("batch",)),
        "table": (chunk.table, ("batch", None)),
    }
    specs = tuple(
        partition_spec(axes, array.shape, mesh_shape, name)
        for name, (array, axes) in arrays.items()
    )
    run = on_devices(on_device, specs, specs[0])
    return run(*(array for array, _ in arrays.values()))
