"""Attention over the mesh: which part each device works on, and how rows that are split over
devices meet.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from jax import Array

from llm_jax.config import ExecutionConfig
from llm_jax.models.pipeline import on_devices
from llm_jax.ops.attention import BACKENDS, attention
from llm_jax.ops.context import all_to_all_attention, ring_attention
from llm_jax.ops.masks import Mask
from llm_jax.sharding import constrain, partition_spec

_ARRAYS = ("q_segments", "k_segments", "q_mutual", "k_mutual", "q_index", "k_index")


def sharded_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    execution: ExecutionConfig,
    length: str | None,
    *,
    scale: float,
    softcap: float,
    sinks: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """``ops.attention`` of q: [B, T, N, H] over k and v: [B, S, K, H], on the current mesh; over
    mesh.context of the same rows only. length: logical axis of T and S, None where every device has
    whole rows; sinks: [N] or None, bias: [B or 1, N, T, S] or None.

    Backends that take what is on one device run under ``shard_map``; rows split over mesh.context
    meet as ``execution.context`` says. Raises ConfigError for a dimension that does not divide,
    ValueError for what the backend cannot do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = not mesh.empty and length is not None and mesh.shape["context"] > 1
    alone = mesh.empty or math.prod(mesh.shape.values()) == 1
    # A prompt of one token: no kernel gains anything, and not all take so few.
    backend = "xla" if length is None and q.shape[1] == 1 else execution.attention
    heads, keys = (
        ("batch", length, "act_heads", "head_dim"),
        ("batch", length, "act_kv_heads", "head_dim"),
    )
    if alone or not (split or BACKENDS[backend].local):
        out = attention(
            q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias, backend=backend
        )
        # Otherwise the gradient comes split by position, and scores move from heads to positions.
        return out if alone else constrain(out, *heads)

    def spec(axes, x, name):
        return partition_spec(axes, x.shape, mesh.shape, name)

    given = {name: x for name in _ARRAYS if (x := getattr(mask, name)) is not None}
    rows = {name: spec(("batch", length), x, name) for name, x in given.items()}

    def on_device(
        q: Array, k: Array, v: Array, given: dict[str, Array], sinks: Array | None
    ) -> Array:
        local = dataclasses.replace(mask, **given)
        if not split:
            return attention(
                q, k, v, local, scale=scale, softcap=softcap, sinks=sinks, backend=backend
            )
        if execution.context == "ring":
            return ring_attention(
                q, k, v, local, axis="context", scale=scale, softcap=softcap, sinks=sinks
            )

        def whole(q, k, v, m, s):
            return attention(q, k, v, m, scale=scale, softcap=softcap, sinks=s, backend=backend)

        return all_to_all_attention(q, k, v, local, sinks, axis="context", attend=whole)

    q_spec, k_spec = spec(heads, q, "queries"), spec(keys, k, "keys")
    s_spec = None if sinks is None else spec(("act_heads",), sinks, "sinks")
    return on_devices(on_device, (q_spec, k_spec, k_spec, rows, s_spec), q_spec)(
        q, k, v, given, sinks
    )
