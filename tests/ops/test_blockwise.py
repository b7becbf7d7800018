"""Attention in blocks, on one device, round a ring of 8 and by exchanging heads, against the
reference that holds every score.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pairwise import cover, parametrize
from test_attention import with_gradients

from llm_jax.ops import Mask, attention
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.context import all_to_all_attention, balanced, ring_attention
from llm_jax.ops.splash import splash_attention

B, T, N, K, H = 2, 64, 8, 2, 16
SEGMENTS = np.sort(np.random.default_rng(0).integers(1, 5, (B, T)), axis=1).astype(np.int32)
SEGMENTS[1, -9:] = 0
# Groups of ten tokens, some of them over the borders of blocks, with causal ones between.
GROUPS = np.where(np.arange(T) % 24 < 10, np.arange(T) // 24 + 1, 0)[None, :]
MASKS = {
    "causal": Mask(),
    "window": Mask(window=11),
    "packed": Mask(q_segments=SEGMENTS, k_segments=SEGMENTS),
    "packed window": Mask(window=7, q_segments=SEGMENTS, k_segments=SEGMENTS),
    "groups": Mask(
        q_segments=SEGMENTS,
        k_segments=SEGMENTS,
        q_mutual=np.tile(GROUPS, (B, 1)),
        k_mutual=np.tile(GROUPS, (B, 1)),
    ),
    "two-sided": Mask(causal=False, window=5),
}


def tensors(length=T):
    rng = np.random.default_rng(1)
    shapes = (B, length, N, H), (B, length, K, H), (B, length, K, H), (B, length, N, H)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


@functools.cache
def reference(kind, softcap=0.0):
    """Outputs and gradients of the attention that holds every score."""
    run = functools.partial(attention, mask=MASKS[kind], scale=0.4, softcap=softcap)
    return [np.asarray(a) for a in with_gradients(run)(*tensors())]


def same(run, expected, order=None, tolerance=2e-5):
    """Outputs and gradients of ``run`` are ``expected``; ``order``: places of the tokens that run
    is given.
    """
    place = (lambda x: x) if order is None else (lambda x: x[:, order])
    found = with_gradients(run)(*map(place, tensors()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, place(other), atol=tolerance, rtol=tolerance)


BLOCKS = list(itertools.product(MASKS, [64, 16, 5], [0.0, 2.0]))


@parametrize(
    "kind, block, softcap",
    BLOCKS,
    by_default=cover(BLOCKS, enumerate, [(0, 1), (0, 2), (1, 2)]),
)
def test_blocks_of_any_size_are_the_whole(kind, block, softcap):
    run = functools.partial(
        blockwise_attention, mask=MASKS[kind], scale=0.4, softcap=softcap, block=block
    )
    same(run, reference(kind, softcap))


def test_a_row_of_prime_length_has_as_few_blocks_as_its_neighbours():
    q, k, v, _ = tensors(61)
    run = jax.make_jaxpr(lambda q: blockwise_attention(q, k, v, Mask(), scale=0.4, block=16))(q)
    lengths = [
        eqn.params["length"] for eqn in jaxpr_equations(run.jaxpr) if eqn.primitive.name == "scan"
    ]
    assert lengths and max(lengths) == 4


def test_a_row_of_scores_never_exists():
    q, k, v, _ = tensors(4096)
    run = jax.grad(lambda q: blockwise_attention(q, k, v, Mask(), scale=0.4, block=256).sum())
    sizes = [
        v.aval.size for eqn in jaxpr_equations(jax.make_jaxpr(run)(q).jaxpr) for v in eqn.outvars
    ]
    assert max(sizes) < 4096 * 4096


def test_the_masks_of_a_row_never_exist_in_a_scan_over_layers():
    q, k, v, _ = tensors(4096)

    def layer(x, _):
        return (
            blockwise_attention(x, k, v, Mask(), scale=0.4, block=256),
            None,
        )

    run = jax.grad(lambda q: jax.lax.scan(layer, q, None, length=3)[0].sum())
    sizes = [
        v.aval.size for eqn in jaxpr_equations(jax.make_jaxpr(run)(q).jaxpr) for v in eqn.outvars
    ]
    assert max(sizes) < 4096 * 4096


def jaxpr_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from jaxpr_equations(getattr(inner, "jaxpr", inner))


def on_ring(ways, body, mask):
    """``body`` under shard_map with the positions of everything split over ``ways`` devices."""
    mesh = jax.make_mesh(
        (ways,),
        ("context",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:ways],
    )
    rows = P(None, "context")
    given = {
        n: jnp.asarray(a)
        for n in ("q_segments", "k_segments", "q_mutual", "k_mutual", "q_index", "k_index")
        if (a := getattr(mask, n)) is not None
    }

    def inside(q, k, v, given):
        return body(q, k, v, Mask(mask.causal, mask.window, **given))

    run = jax.shard_map(
        inside, mesh=mesh, in_specs=(rows, rows, rows, rows), out_specs=rows, check_vma=False
    )
    return lambda q, k, v: run(q, k, v, given)


RINGS = [
    (kind, ways, in_order)
    for ways, in_order in [(2, True), (8, True), (4, False), (8, False)]
    for kind in MASKS
]


@pytest.mark.mesh
@parametrize("kind, ways, in_order", RINGS, by_default=cover(RINGS, enumerate, [(0, 2), (1, 2)]))
def test_a_ring_of_devices_is_one_device(kind, ways, in_order):
    mask, order = MASKS[kind], None if in_order else balanced(T, ways)
    if order is not None:
        index = np.broadcast_to(order[None, :], (B, T))
        moved = {
            n: a[:, order]
            for n in ("q_segments", "k_segments", "q_mutual", "k_mutual")
            if (a := getattr(mask, n)) is not None
        }
        mask = Mask(mask.causal, mask.window, q_index=index, k_index=index, **moved)
    run = on_ring(
        ways, functools.partial(ring_attention, axis="context", scale=0.4, softcap=1.5), mask
    )
    same(run, reference(kind, 1.5), order)


EXCHANGES = list(itertools.product(MASKS, [2, 8]))


@pytest.mark.mesh
@parametrize("kind, ways", EXCHANGES, by_default=EXCHANGES[::4] + EXCHANGES[3::4])
def test_exchanging_positions_for_heads_is_one_device(kind, ways):
    inner = functools.partial(attention, scale=0.4)
    body = functools.partial(
        all_to_all_attention,
        axis="context",
        attend=lambda q, k, v, mask, sinks: inner(q, k, v, mask, sinks=sinks),
    )
    same(on_ring(ways, body, MASKS[kind]), reference(kind))


@pytest.mark.mesh
def test_heads_that_do_not_divide_over_the_context_are_refused():
    q, k, v, _ = tensors()
    body = functools.partial(
        all_to_all_attention, axis="context", attend=lambda q, k, v, mask, sinks: q
    )
    said = (
        r"3 heads on a device \(.*\) do not divide over mesh\.context 8; use 8 on a device,"
        r" execution\.context ring"
    )
    with pytest.raises(ValueError, match=said):
        on_ring(8, body, Mask())(q[:, :, :3], k[:, :, :1], v[:, :, :1])


def test_balanced_rows_give_every_device_the_same_work():
    order = balanced(64, 4)
    assert sorted(order.tolist()) == list(range(64))
    work = [sum(place + 1 for place in part) for part in order.reshape(4, 16).tolist()]
    assert len(set(work)) == 1
    assert balanced(16, 2).tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="60 tokens does not divide into 8 pieces for a ring of 4"):
        balanced(60, 4)


def test_a_ring_must_know_places():
    q, k, v, _ = tensors()
    with pytest.raises(ValueError, match="needs mask.q_index and mask.k_index"):
        blockwise_attention(q, k, v, Mask(), scale=1.0, ring="context")


SPLASH = list(itertools.product([0, 40], [False, True], [0.0, 3.0], [64, 130]))


@parametrize(
    "window, packed, softcap, length",
    SPLASH,
    by_default=[(0, True, 0.0, 130), (40, True, 3.0, 64), (40, False, 0.0, 130)],
)
def test_the_tpu_kernel_interpreted_is_the_reference(window, packed, softcap, length):
    q, k, v, g = tensors(length)
    segments = (
        jnp.asarray(
            np.sort(np.random.default_rng(2).integers(0, 4, (B, length)), axis=1), jnp.int32
        )
        if packed
        else None
    )
    mask = Mask(window=window, q_segments=segments, k_segments=segments)
    settings = {"mask": mask, "scale": 0.4, "softcap": softcap}
    mine = with_gradients(functools.partial(splash_attention, **settings, interpret=True))(
        q, k, v, g
    )
    for one, other in zip(
        mine, with_gradients(functools.partial(attention, **settings))(q, k, v, g)
    ):
        np.testing.assert_allclose(one, other, atol=5e-5, rtol=5e-5)


def test_the_tpu_kernel_refuses_what_it_would_get_wrong():
    q, k, v, _ = tensors()
    with pytest.raises(ValueError, match="causal masks over one row"):
        splash_attention(q, k, v, Mask(causal=False), scale=1.0)
    with pytest.raises(ValueError, match="not 64 queries of 32 keys"):
        splash_attention(q, k[:, :32], v[:, :32], Mask(), scale=1.0)
