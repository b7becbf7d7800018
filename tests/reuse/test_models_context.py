"""Attention over rows that are split over devices, inside anybody's shard_map."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from pairwise import parametrize
from small_kinds import assert_close
from ways_to_call import AUTO, mesh_of

from llm_jax.ops.attention import attention
from llm_jax.ops.context import all_to_all_attention, ring_attention
from llm_jax.ops.masks import Mask

pytestmark = pytest.mark.mesh

T, N, K, H = 16, 4, 2, 8
MASK = Mask(causal=True)


def arguments():
    """q, k and v, sinks, and the segments of tokens."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, T, n, H)) for key, n in zip(keys, (N, K, K)))
    segments = jnp.array([[1] * 6 + [2] * 10, [1] * 16])
    return q, k, v, jax.random.normal(keys[3], (N,)), segments


def whole_rows(q, k, v, sinks, segments):
    mask = dataclasses.replace(MASK, q_segments=segments, k_segments=segments)
    return attention(q, k, v, mask, sinks=sinks)


def ring(q, k, v, sinks, segments):
    mask = dataclasses.replace(MASK, q_segments=segments, k_segments=segments)
    return ring_attention(q, k, v, mask, axis="part", scale=H**-0.5, sinks=sinks)


def all_to_all(q, k, v, sinks, segments):
    mask = dataclasses.replace(MASK, q_segments=segments, k_segments=segments)

    def attend(q, k, v, mask, sinks):
        return attention(q, k, v, mask, sinks=sinks)

    return all_to_all_attention(q, k, v, mask, sinks, axis="part", attend=attend)


def derivatives(attend):
    """A number, its gradient, and the derivatives of both along the arguments themselves."""
    *differentiable, segments = arguments()

    def size(*args):
        return jnp.sum(jnp.sin(attend(*args, segments)))

    both = jax.value_and_grad(size, (0, 1, 2, 3))
    return jax.jit(lambda *args: jax.jvp(both, args, args))(*differentiable)


@parametrize("attend", [[ring], [all_to_all]], by_default=[[ring]])
def test_derivatives_of_split_rows_are_those_of_whole_ones(attend):
    rows = P(None, "part")
    split = partial(jax.shard_map, mesh=mesh_of({"part": 4}, AUTO), out_specs=rows)
    on_devices = split(attend, in_specs=(rows, rows, rows, P(), rows))
    assert_close(derivatives(on_devices), derivatives(whole_rows))
