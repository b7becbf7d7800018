"""Attention sinks, and values of another width than keys: every backend is exact or raises, on one
device and on several.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pairwise import cover, parametrize
from test_attention import (
    BACKENDS,
    MASKS,
    SEGMENTS,
    N,
    T,
    mask_of,
    must_raise,
    visible,
    with_gradients,
)

from llm_jax.ops import Mask, attention
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.context import all_to_all_attention, balanced, ring_attention
from llm_jax.ops.splash import splash_attention

H, V = 8, 6
CANNOT = {  # what the error names
    ("dot_product", "sinks"): "attention sinks",
    ("cudnn", "sinks"): "attention sinks",
    ("dot_product", "width"): "values of another width",
    ("cudnn", "width"): "values of another width",
}


def tensors(kv_heads: int, width: int, length: int = T, heads: int = N):
    """q, k, v, sinks"""
    rng = np.random.default_rng(kv_heads)
    shapes = (2, length, heads, H), (2, length, kv_heads, H), (2, length, kv_heads, width), (heads,)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


def reference(q, k, v, sinks, seen, scale, softcap):
    """One query and one head at a time, float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (q.shape[2] // k.shape[2])
        keys = np.flatnonzero(seen[b, t])
        scores = k[b, keys, head] @ q[b, t, n] * scale
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        weights = np.exp(scores)
        out[b, t, n] = (
            weights
            / (weights.sum() + (0 if sinks is None else np.exp(float(sinks[n]))))
            @ v[b, keys, head]
        )
    return out


def refusal(backend, kind, heads, what) -> str:
    """What the error names, empty where there is none."""
    unable = CANNOT.get((backend, "width" if what == "width" else "sinks"), "")
    return must_raise(backend, kind, "float32", heads[1]) or unable


CELLS = list(
    itertools.product(BACKENDS, MASKS, [(4, 0.0), (2, 1.5), (1, 0.0)], ["sinks", "width", "both"])
)
REFUSED = [cell for cell in CELLS if refusal(*cell)]
COMPUTED = [cell for cell in CELLS if cell not in REFUSED]
ALL_PAIRS = list(itertools.combinations(range(4), 2))


@parametrize(
    "backend, kind, heads, what",
    CELLS,
    by_default=REFUSED + cover(COMPUTED, enumerate, ALL_PAIRS),
)
def test_every_cell_is_exact_or_raises(backend, kind, heads, what):
    kv_heads, softcap = heads
    q, k, v, sinks = tensors(kv_heads, H if what == "sinks" else V)
    sinks = None if what == "width" else sinks

    @jax.jit
    def run():
        return attention(
            q, k, v, mask_of(kind), scale=0.3, softcap=softcap, sinks=sinks, backend=backend
        )

    if refusal(backend, kind, heads, what):
        with pytest.raises(
            ValueError, match=rf"attention backend '{backend}' .*; use backend 'xla'"
        ):
            run()
        return
    expected = reference(q, k, v, sinks, visible(kind, SEGMENTS), 0.3, softcap)
    np.testing.assert_allclose(run(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("backend, what", CANNOT)
def test_what_a_backend_cannot_honour_is_named(backend, what):
    q, k, v, sinks = tensors(2, V if what == "width" else H)
    with pytest.raises(
        ValueError, match=rf"'{backend}' cannot honour {CANNOT[backend, what]}.*; use backend 'xla'"
    ):
        attention(q, k, v, sinks=sinks if what == "sinks" else None, backend=backend)


def test_weights_written_out():
    # Scores 0 and ln 3 beside a sink of ln 4: weights 1/8 and 3/8, and half of the weight has no
    # value.
    q, k = jnp.ones((1, 2, 1, 1)), jnp.array([0.0, np.log(3)])[None, :, None, None]
    v = jnp.array([[8.0, 80.0], [16.0, 160.0]])[None, :, None]
    out = attention(q, k, v, scale=1.0, sinks=jnp.log(jnp.array([4.0])))
    np.testing.assert_allclose(out[0, 1, 0], [1 + 6, 10 + 60], rtol=1e-6)


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_a_sink_that_outweighs_everything_leaves_nothing_and_a_low_one_changes_nothing(backend):
    q, k, v, _ = tensors(2, V)

    def run(s):
        return attention(q, k, v, sinks=jnp.full((N,), s), backend=backend)

    np.testing.assert_array_equal(run(300.0), np.zeros((2, T, N, V)))
    np.testing.assert_allclose(run(-300.0), attention(q, k, v), atol=1e-6)


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_a_query_that_sees_nothing_gives_nothing(backend):
    q, k, v, sinks = tensors(2, V)
    mask = Mask(
        causal=False, q_segments=jnp.full((2, T), 2), k_segments=jnp.ones((2, T), jnp.int32)
    )
    out, pullback = jax.vjp(
        lambda v, s: attention(q, k, v, mask, sinks=s, backend=backend), v, sinks
    )
    for a in (out, *pullback(jnp.ones_like(out))):
        np.testing.assert_array_equal(a, np.zeros(a.shape))


def test_sinks_are_one_for_each_head():
    q, k, v, sinks = tensors(2, V)
    with pytest.raises(
        ValueError,
        match=r"attention sinks have shape \(3,\); give one for each of the 4 query heads",
    ):
        attention(q, k, v, sinks=sinks[:3])


def same(run, expected, tolerance=3e-5, length=64, heads=8, order=None):
    """Output and gradients, of the sinks too, of (q, k, v, sinks) -> out."""
    q, k, v, sinks = tensors(2, V, length, heads)
    g = jnp.asarray(np.random.default_rng(5).normal(size=(2, length, heads, V)), jnp.float32)

    def place(x):
        return x if order is None or x.ndim < 2 else x[:, order]

    def both(f):
        return jax.jit(
            lambda q, k, v, s, g: (lambda out, back: (out, *back(g)))(*jax.vjp(f, q, k, v, s))
        )

    mine = both(run)(*map(place, (q, k, v, sinks, g)))
    for one, other in zip(mine, both(expected)(q, k, v, sinks, g), strict=True):
        np.testing.assert_allclose(one, place(other), atol=tolerance, rtol=tolerance)


def whole(mask=Mask()):  # noqa: B008 (frozen)
    return lambda q, k, v, s: attention(q, k, v, mask, scale=0.4, sinks=s)


@pytest.mark.parametrize("block", [64, 16, 5])
def test_blocks_are_the_whole(block):
    mask = Mask(window=11)
    same(
        lambda q, k, v, s: blockwise_attention(q, k, v, mask, scale=0.4, sinks=s, block=block),
        whole(mask),
    )


@pytest.mark.parametrize("length", [64, 130])
def test_the_tpu_kernel_interpreted_is_the_reference(length):
    mask = Mask(window=40)

    def run(q, k, v, s):
        return splash_attention(q, k, v, mask, scale=0.4, sinks=s, interpret=True)

    same(run, whole(mask), tolerance=5e-5, length=length)


def spread(ways, body):
    """``body`` of q, k, v, sinks and the places of tokens under shard_map, with positions split
    over ``ways`` devices.
    """
    mesh = jax.make_mesh(
        (ways,),
        ("context",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:ways],
    )
    rows = P(None, "context")
    return jax.shard_map(
        body, mesh=mesh, in_specs=(rows, rows, rows, P(), rows), out_specs=rows, check_vma=False
    )


@pytest.mark.mesh
@pytest.mark.parametrize("ways", [2, 8])
def test_a_ring_of_devices_is_one_device(ways):
    order = balanced(64, ways)
    index = jnp.broadcast_to(jnp.asarray(order)[None], (2, 64))

    def body(q, k, v, s, index):
        return ring_attention(
            q, k, v, Mask(q_index=index, k_index=index), axis="context", scale=0.4, sinks=s
        )

    same(lambda q, k, v, s: spread(ways, body)(q, k, v, s, index), whole(), order=order)


@pytest.mark.mesh
@pytest.mark.parametrize("ways", [2, 8])
def test_exchanging_positions_for_heads_is_one_device(ways):
    def attend(q, k, v, mask, s):
        return attention(q, k, v, mask, scale=0.4, sinks=s)

    def body(q, k, v, s, _):
        return all_to_all_attention(q, k, v, Mask(), s, axis="context", attend=attend)

    same(lambda q, k, v, s: spread(ways, body)(q, k, v, s, jnp.zeros((2, 64), jnp.int32)), whole())


def test_values_of_another_width_have_gradients_without_sinks_too():
    q, k, v, _ = tensors(2, V)
    out = with_gradients(functools.partial(blockwise_attention, mask=Mask(), scale=0.4))(
        q, k, v, jnp.ones((2, T, N, V))
    )
    for one, other in zip(
        out,
        with_gradients(functools.partial(attention, scale=0.4))(q, k, v, jnp.ones((2, T, N, V))),
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)
