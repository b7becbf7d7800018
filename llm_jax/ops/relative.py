"""Relative positions as a bias on attention's scores, by buckets of distances."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.precision import widened


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance (Raffel et al. 2020, section 2.1, and T5's released code).

    The first half of the buckets hold one distance each. The rest grow logarithmically up to
    ``max_distance``; all distances from there share the last.

    Returns:
        int32 [max_distance + 1].

    Raises:
        ValueError: the bounds leave no such buckets.
    """
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{buckets} buckets up to distance {max_distance}: use at least 2, and a distance of"
            f" more than {exact}"
        )
    # In float32, operation by operation, as the reference rounds: otherwise a distance on a bound
    # would change its bucket.
    distance = np.arange(max_distance + 1, dtype=np.float32)
    with np.errstate(divide="ignore"):
        log = (
            np.log(distance / np.float32(exact))
            / np.float32(math.log(max_distance / exact))
            * np.float32(buckets - exact)
        )
    large = exact + np.maximum(log, 0).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(large, buckets - 1)).astype(np.int32)


def relative_bias(
    table: Array, q_index: Array, k_index: Array, *, causal: bool, max_distance: int
) -> Array:
    """What the distance between query and key adds to their score.

    Args:
        table: [R, N], a number for each of R buckets and N heads.
        q_index: int [B or 1, T] or [T], positions of queries in the row.
        k_index: int [B or 1, S] or [S], positions of keys in the row.
        causal: keys after the query share bucket 0; otherwise half of the buckets are for them.
        max_distance: from which on all distances share a bucket.

    Returns:
        float32 [B or 1, N, T, S], or float64 for a table of it.

    Raises:
        ValueError: there are too few buckets, or shapes disagree.
    """
    q_index, k_index = (x[None, :] if x.ndim == 1 else x for x in (q_index, k_index))
    if table.ndim != 2 or q_index.ndim != 2 or k_index.ndim != 2:
        raise ValueError(
            f"relative_bias got a table {table.shape}, q_index {q_index.shape} and k_index"
            f" {k_index.shape}; they must be [R, N], [B, T] and [B, S]"
        )
    R = table.shape[0]
    known = jnp.asarray(distance_buckets(R if causal else R // 2, max_distance))

    def run(table: Array, q_index: Array, k_index: Array) -> Array:
        after = k_index[:, None, :] - q_index[:, :, None]
        distance = jnp.maximum(-after, 0) if causal else jnp.abs(after)
        bucket = jnp.take(known, jnp.minimum(distance, max_distance), axis=0)
        if not causal:
            bucket = bucket + jnp.where(after > 0, R // 2, 0)
        return jnp.moveaxis(jnp.take(widened(table), bucket, axis=0), -1, 1)

    rows = k_index if q_index.shape[0] == 1 else q_index
    return place_automatically(run, explicit_spec(rows, 1), table, q_index, k_index)
