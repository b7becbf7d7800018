"""Attention over the mesh: which part each device computes, and how devices that share a row
exchange its parts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array

from llm_jax.config import ExecutionConfig
from llm_jax.models.pipeline import on_devices
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.context import all_to_all_attention, ring_attention
from llm_jax.ops.masks import Mask
from llm_jax.sharding import constrain, own_sizes, partition_spec

_MASK_ARRAYS = ("q_segments", "k_segments", "q_mutual", "k_mutual", "q_index", "k_index")
# attend(q, k, v, mask, sinks=...) on the arrays of one device.
_Attend = Callable[..., Array]


def sharded_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    execution: ExecutionConfig,
    length: str | None,
    scale: float,
    softcap: float,
    sinks: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """``ops.attention`` on the current mesh.

    Backends that take the arrays of one device run under ``shard_map``. Rows that are split over
    mesh.context are exchanged as ``execution.context`` says; queries and keys are then of the same
    rows.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H].
        v: [B, S, K, H'].
        mask: which keys a query sees.
        execution: names the backend; it must be resolved.
        length: logical axis of T and S; None where every device has whole rows.
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        sinks: [N] or None.
        bias: [B or 1, N, T, S] or None.

    Returns:
        [B, T, N, H'].

    Raises:
        ConfigError: a dimension does not divide over its mesh axes.
        ValueError: the backend does not support an argument.
    """
    # A prompt of one token: no kernel gains anything, and not all take so few.
    one_token = length is None and q.shape[1] == 1
    backend = "xla" if one_token else execution.attention
    attend = partial(attention, scale=scale, softcap=softcap, backend=backend)
    sizes = own_sizes()
    if math.prod(sizes.values()) == 1:
        return attend(q, k, v, mask, sinks=sinks, bias=bias)
    split = length is not None and sizes["context"] > 1
    if not split and not BACKENDS[backend].local:
        out = attend(q, k, v, mask, sinks=sinks, bias=bias)
        # Otherwise the gradient comes split by position, and scores move from heads to positions.
        return constrain(out, "batch", length, "act_heads", "head_dim")
    if bias is not None:
        raise ValueError(
            f"attention backend {backend!r} takes no bias on the scores on a mesh; use backend"
            " 'xla', and mesh.context 1"
        )
    if split and execution.context == "ring":
        attend = partial(ring_attention, axis="context", scale=scale, softcap=softcap)
    elif split:
        attend = partial(_all_to_all, attend)
    return _on_each_device(attend, q, k, v, mask, sinks=sinks, length=length)


def _all_to_all(
    attend: _Attend, q: Array, k: Array, v: Array, mask: Mask, *, sinks: Array | None
) -> Array:
    """``attend`` over whole rows of some of the heads, inside ``shard_map``."""

    def on_whole_rows(q: Array, k: Array, v: Array, mask: Mask, sinks: Array | None) -> Array:
        return attend(q, k, v, mask, sinks=sinks)

    return all_to_all_attention(q, k, v, mask, sinks, axis="context", attend=on_whole_rows)


def _on_each_device(
    attend: _Attend,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    sinks: Array | None,
    length: str | None,
) -> Array:
    """``attend`` under ``shard_map``: each device has some rows, positions and heads."""
    mesh_shape = jax.sharding.get_abstract_mesh().shape
    q_axes = ("batch", length, "act_heads", "head_dim")
    k_axes = ("batch", length, "act_kv_heads", "head_dim")
    arrays = {name: getattr(mask, name) for name in _MASK_ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}

    def on_device(
        q: Array, k: Array, v: Array, arrays: dict[str, Any], sinks: Array | None
    ) -> Array:
        return attend(q, k, v, dataclasses.replace(mask, **arrays), sinks=sinks)

    q_spec = partition_spec(q_axes, q.shape, mesh_shape, "queries")
    k_spec = partition_spec(k_axes, k.shape, mesh_shape, "keys")
    mask_specs = {
        name: partition_spec(("batch", length), array.shape, mesh_shape, name)
        for name, array in arrays.items()
    }
    sink_spec = None
    if sinks is not None:
        sink_spec = partition_spec(("act_heads",), sinks.shape, mesh_shape, "sinks")
    run = on_devices(on_device, (q_spec, k_spec, k_spec, mask_specs, sink_spec), q_spec)
    return run(q, k, v, arrays, sinks)
