"""Experts against a loop over tokens, on one device and spread over 8; routing and
balance by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from rounding import Rounded, assert_close, einsum, exp, sigmoid

from llm_jax.ops.moe import (
    Experts,
    Routing,
    apply_experts,
    balance_loss,
    best_groups,
    exchange,
    load_gradient,
    route,
    row_loads,
)

n, D, F, E, K = 32, 8, 12, 16, 3


def tensors(seed=0, skew=0.0):
    """x, router logits and experts. ``skew`` makes all tokens want the first experts."""
    rng = np.random.default_rng(seed)

    def make(*s):
        return jnp.asarray(rng.normal(size=s), jnp.float32)

    return (
        make(n, D),
        make(n, E) - skew * jnp.arange(E)[None, :],
        Experts(make(E, D, F), make(E, D, F), make(E, F, D)),
    )


def by_token(x, logits, experts):
    """One token and one expert at a time, and how far float32 arithmetic may be from that: sums of
    D, F and K terms.
    """
    x, logits, gate, up, down = (Rounded(a) for a in (x, logits, *experts[:3]))
    numerators = exp(logits - logits.value.max(-1, keepdims=True))
    scores = numerators / numerators.sum(-1, keepdims=True)
    tokens = []
    for t in range(n):
        best = np.argsort(-scores.value[t], kind="stable")[:K]
        weights = scores[t, best] / scores[t, best].sum()
        g = einsum("d,kdf->kf", x[t], gate[best])
        hidden = g * sigmoid(g) * einsum("d,kdf->kf", x[t], up[best])
        tokens.append(einsum("k,kd->d", weights, einsum("kf,kfd->kd", hidden, down[best])))
    return Rounded(
        np.stack([token.value for token in tokens]), np.stack([token.error for token in tokens])
    )


def run(x, logits, experts, axis=None):
    return apply_experts(x, route(logits, K), experts, activation="silu", axis=axis)


def with_gradients(f):
    weight = jnp.asarray(np.random.default_rng(9).normal(size=(n, D)), jnp.float32)
    return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a) * weight), (0, 1, 2)))


def spread(ways):
    mesh = jax.make_mesh(
        (ways,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:ways]
    )
    return jax.shard_map(
        functools.partial(run, axis="expert"),
        mesh=mesh,
        in_specs=P("expert"),
        out_specs=P("expert"),
        check_vma=False,
    )


@pytest.mark.parametrize("skew", [0.0, 5.0])
def test_every_token_goes_through_its_experts(skew):
    assert_close(jax.jit(run)(*tensors(skew=skew)), by_token(*tensors(skew=skew)))


@pytest.mark.mesh
@pytest.mark.parametrize(
    "skew", [0.0, 5.0]
)  # with 5 all tokens of all devices choose the experts of the first
@pytest.mark.parametrize("ways", [2, 8])
def test_experts_on_other_devices_are_experts_here(ways, skew):
    mine, theirs = (
        with_gradients(spread(ways))(*tensors(skew=skew)),
        with_gradients(run)(*tensors(skew=skew)),
    )
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=1e-5)


def test_an_experts_gradient_is_that_of_the_definition():
    x, logits, experts = tensors()

    def dense(x, logits, experts):
        r = route(logits, K)
        hidden = jax.nn.silu(jnp.einsum("nd,edf->enf", x, experts.gate)) * jnp.einsum(
            "nd,edf->enf", x, experts.up
        )
        every = jnp.einsum("enf,efd->end", hidden, experts.down)
        return jnp.einsum("end,nke,nk->nd", every, jax.nn.one_hot(r.experts, E), r.weights)

    for one, other in zip(
        *(jax.tree.leaves(with_gradients(f)(x, logits, experts)) for f in (run, dense))
    ):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=1e-4)


def biased(seed=3):
    rng = np.random.default_rng(seed)
    x, logits, experts = tensors()
    biases = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((E, F), (E, F), (E, D)))
    return x, logits, Experts(*experts[:3], *biases)


def limited(x, logits, experts, axis=None):
    return apply_experts(
        x, route(logits, K), experts, activation="quick_gelu", clamp=1.0, up_offset=1.0, axis=axis
    )


def test_biases_and_the_clamped_gate_by_token():
    """One token and one expert at a time, float64, written from gpt-oss's released code."""
    x, logits, experts = (jax.tree.map(lambda a: np.asarray(a, np.float64), t) for t in biased())
    expected = np.zeros(x.shape)
    for t, row in enumerate(x):
        best = np.argsort(-logits[t], kind="stable")[:K]
        weights = np.exp(logits[t, best]) / np.exp(logits[t, best]).sum()
        for w, e in zip(weights, best):
            gate = np.minimum(row @ experts.gate[e] + experts.gate_bias[e], 1.0)
            up = np.clip(row @ experts.up[e] + experts.up_bias[e], -1.0, 1.0)
            expected[t] += w * (
                (up + 1) * gate / (1 + np.exp(-1.702 * gate)) @ experts.down[e]
                + experts.down_bias[e]
            )
    np.testing.assert_allclose(jax.jit(limited)(*biased()), expected, atol=2e-5)


@pytest.mark.mesh
@pytest.mark.parametrize("ways", [2, 8])
def test_biased_experts_on_other_devices_are_experts_here(ways):
    mesh = jax.make_mesh(
        (ways,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:ways]
    )
    there = jax.shard_map(
        functools.partial(limited, axis="expert"),
        mesh=mesh,
        in_specs=P("expert"),
        out_specs=P("expert"),
        check_vma=False,
    )
    for one, other in zip(
        *(jax.tree.leaves(with_gradients(f)(*biased())) for f in (there, limited)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=1e-5)


def test_the_best_groups_by_hand():
    # Groups of two: their best are 5, 4 and 3, the sums of two 5, 7 and 6.
    scores = jnp.array([5.0, 0.0, 4.0, 3.0, 3.0, 3.0])
    both = {
        k: {s: best_groups(scores, 3, k, s).tolist() for s in ("best", "best_two")} for k in (1, 2)
    }
    assert both[1] == {"best": [1, 1, 0, 0, 0, 0], "best_two": [0, 0, 1, 1, 0, 0]}
    assert both[2] == {"best": [1, 1, 1, 1, 0, 0], "best_two": [0, 0, 1, 1, 1, 1]}
    assert best_groups(jnp.zeros((2, 3, 6)), 3, 2, "best").shape == (2, 3, 6)


def test_experts_of_the_best_groups_alone_are_chosen():
    """Expert 4 is third of all, but the weaker group's best; the bias chooses groups too."""
    logits = jnp.log(jnp.array([[0.3, 0.25, 0.2, 0.05, 0.22, 0.01]]))
    assert route(logits, 3).experts.tolist() == [[0, 1, 4]]
    assert route(
        logits, 3, groups=3, groups_per_token=2, group_score="best_two"
    ).experts.tolist() == [[0, 1, 2]]
    assert route(logits, 2, groups=3, groups_per_token=1).experts.tolist() == [[0, 1]]
    third = route(
        logits,
        2,
        normalize=False,
        groups=3,
        groups_per_token=1,
        bias=jnp.array([0.0, 0, 0, 0, 1, 0]),
    )
    assert third.experts.tolist() == [[4, 5]]
    np.testing.assert_allclose(third.weights, [[0.22 / 1.03, 0.01 / 1.03]], rtol=1e-5)


@pytest.mark.mesh
def test_parts_of_unequal_size_arrive_in_order_and_go_back():
    sizes = np.array([[1, 2], [3, 0]], np.int32)
    rows = jnp.array(
        [[10.0], [11], [12], [0], [20], [21], [22], [0]]
    )  # of device 0: one for 0, two for 1; of device 1: three for 0
    mesh = jax.make_mesh(
        (2,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )

    def there(rows):
        arrived = exchange(rows, jnp.asarray(sizes), 5, "expert")
        return arrived, exchange(arrived, jnp.asarray(sizes.T), 4, "expert")

    arrived, back = jax.shard_map(
        there, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=False
    )(rows)
    assert arrived[:, 0].tolist() == [10, 20, 21, 22, 0, 11, 12, 0, 0, 0]
    assert back[:, 0].tolist() == [10, 11, 12, 0, 20, 21, 22, 0]


def test_routing_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    r = route(logits, 2)
    assert r.experts.tolist() == [[0, 1]]
    np.testing.assert_allclose(r.weights, [[0.625, 0.375]], atol=1e-6)
    np.testing.assert_allclose(
        route(logits, 2, normalize=False, scale=2.0).weights, [[1.0, 0.6]], atol=1e-6
    )
    # The bias changes who is chosen, and not what a chosen expert counts.
    biased = route(logits, 2, normalize=False, bias=jnp.array([0.0, 0.0, 0.4]))
    assert biased.experts.tolist() == [[2, 0]]
    np.testing.assert_allclose(biased.weights, [[0.2, 0.5]], atol=1e-6)
    np.testing.assert_allclose(
        route(jnp.zeros((1, 4)), 2, router="sigmoid", normalize=False).weights, [[0.5, 0.5]]
    )
    np.testing.assert_allclose(
        route(jnp.zeros((1, 4)), 2, router="sigmoid").scores, [[0.25] * 4], atol=1e-6
    )


def test_balance_by_hand():
    # Two tokens of one row; the third does not count. Both choose expert 0 of two: share 1, mean
    # score 0.75.
    r = Routing(
        jnp.array([[[0], [0], [1]]]),
        jnp.ones((1, 3, 1)),
        jnp.array([[[0.7, 0.3], [0.8, 0.2], [0.0, 1.0]]]),
    )
    counted = jnp.array([[1.0, 1.0, 0.0]])
    assert row_loads(r, counted).tolist() == [[2.0, 0.0]]
    np.testing.assert_allclose(balance_loss(r, counted), 2 * 2 * 0.75, rtol=1e-6)
    even = Routing(jnp.array([[[0], [1]]]), jnp.ones((1, 2, 1)), jnp.full((1, 2, 2), 0.5))
    np.testing.assert_allclose(balance_loss(even, jnp.ones((1, 2))), 2.0, rtol=1e-6)


def test_loss_free_balance_adds_nothing_but_a_gradient():
    value, slope = jax.value_and_grad(lambda b: load_gradient(b, jnp.array([4.0, 0.0, 2.0])))(
        jnp.zeros(3)
    )
    assert float(value) == 0 and slope.tolist() == [2.0, -2.0, 0.0]
