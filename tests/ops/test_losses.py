"""Cross-entropy against its definition; the chunked form against the plain one, in value, gradient
and memory.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import Rounded, assert_close, exp, log

from llm_jax.ops import chunked_cross_entropy, cross_entropy, soft_cap

B, T, D, V = 2, 32, 8, 64
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, (B, T)))
MASK = jnp.asarray(RNG.random((B, T)) < 0.7)


def test_uniform_logits_cost_ln_v_per_counted_token():
    out = cross_entropy(jnp.zeros((B, T, V)), TARGETS, MASK)
    each = log(Rounded(np.ones(V)).sum()) * np.asarray(MASK, np.float64)
    np.testing.assert_array_equal(each.value, math.log(V) * np.asarray(MASK))
    assert_close(out.nll, each)
    assert_close(out.total, each.sum())


def test_z_loss_is_the_squared_log_normaliser():
    # Logits all 3: log Z = 3 + ln V, whatever the target.
    plain, with_z = (cross_entropy(jnp.full((B, T, V), 3.0), TARGETS, MASK, z) for z in (0.0, 0.5))
    extra = 0.5 * (3 + math.log(V)) ** 2 * int(MASK.sum())
    assert float(with_z.total - plain.total) == pytest.approx(extra, rel=1e-5)
    np.testing.assert_array_equal(with_z.nll, plain.nll)


def test_correct_counts_the_most_likely_target_where_the_mask_is_on():
    logits = jnp.array([[[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]])
    out = cross_entropy(logits, jnp.array([[1, 0, 1]]), jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(out.correct, [[True, False, False]])
    # The logarithm of the normaliser less the logit, two numbers that are larger than their
    # difference.
    expected = log(exp(Rounded([-2.0, 0.0])).sum()) + 2.0 - 2.0
    assert expected.value == pytest.approx(math.log1p(math.exp(-2)), rel=1e-12)
    assert_close(out.nll[0, 0], expected)


def test_large_bfloat16_logits_stay_finite():
    logits = jnp.full((1, 1, V), -3e38, jnp.bfloat16).at[0, 0, 5].set(3e4)
    out = cross_entropy(logits, jnp.array([[5]]), jnp.ones((1, 1), bool), 1e-4)
    assert float(out.nll[0, 0]) == 0.0 and np.isfinite(out.total)


def test_label_smoothing_by_hand_and_only_in_total():
    # Of 3 tokens with probabilities 1/2, 1/4, 1/4 and target 0: 0.7·ln 2 + 0.3·(ln 2 + 2·ln 4)/3 =
    # 0.7·ln 2 + 0.5·ln 2.
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    targets, mask = jnp.array([[0, 2]]), jnp.array([[True, False]])
    plain, smooth = (cross_entropy(logits, targets, mask, label_smoothing=s) for s in (0.0, 0.3))
    assert float(smooth.total) == pytest.approx(1.2 * np.log(2), rel=1e-6)
    np.testing.assert_array_equal(smooth.nll, plain.nll)
    chunked = chunked_cross_entropy(logits, jnp.eye(3), targets, mask, chunk=2, label_smoothing=0.3)
    assert float(chunked.total) == pytest.approx(1.2 * np.log(2), rel=1e-6)
    np.testing.assert_allclose(chunked.nll, plain.nll, rtol=1e-6)


def both(dtype, chunk, z_loss, cap, mask=MASK, smoothing=0.0):
    """Value and gradients (hidden and kernel) of the plain and of the chunked loss."""

    def plain(hidden, kernel):
        logits = soft_cap((hidden @ kernel.T.astype(hidden.dtype)).astype(jnp.float32), cap)
        out = cross_entropy(logits, TARGETS, mask, z_loss, smoothing)
        return out.total * 0.5, out

    def chunked(hidden, kernel):
        out = chunked_cross_entropy(
            hidden,
            kernel,
            TARGETS,
            mask,
            chunk=chunk,
            softcap=cap,
            z_loss=z_loss,
            label_smoothing=smoothing,
        )
        return out.total * 0.5, out

    return (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(HIDDEN.astype(dtype), KERNEL)
        for f in (plain, chunked)
    )


@pytest.mark.parametrize(
    "chunk, z_loss, cap, smoothing",
    [
        (1, 0.0, 0.0, 0.0),
        (8, 0.0, 0.0, 0.0),
        (16, 1e-2, 0.0, 0.0),
        (8, 1e-2, 3.0, 0.0),
        (V, 1e-2, 3.0, 0.0),
        (24, 1e-2, 3.0, 0.0),
        (63, 0.0, 0.0, 0.0),
        (8, 0.0, 0.0, 0.1),
        (24, 1e-2, 3.0, 0.3),
        (63, 0.0, 0.0, 0.1),
        (V, 1e-2, 0.0, 0.9),
    ],
)
def test_chunked_equals_plain_in_value_and_gradient(chunk, z_loss, cap, smoothing):
    ((value, out), grads), ((value_c, out_c), grads_c) = both(
        jnp.float32, chunk, z_loss, cap, smoothing=smoothing
    )
    assert float(value_c) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(out_c.nll, out.nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out_c.correct, out.correct)
    for g, g_c in zip(grads, grads_c):
        assert np.abs(g).max() > 0.01
        np.testing.assert_allclose(g_c, g, rtol=2e-5, atol=2e-5)


def test_chunked_with_bfloat16_hidden_states():
    ((value, _), grads), ((value_c, _), grads_c) = both(jnp.bfloat16, 8, 1e-2, 3.0)
    assert float(value_c) == pytest.approx(float(value), rel=1e-5)
    assert [g.dtype for g in grads_c] == [jnp.bfloat16, jnp.float32]
    for g, g_c in zip(grads, grads_c):
        g, g_c = np.asarray(g, np.float32), np.asarray(g_c, np.float32)
        assert np.linalg.norm(g_c - g) < 0.02 * np.linalg.norm(g)


def test_uncounted_tokens_have_no_gradient():
    (_, _), (_, grads) = both(jnp.float32, 8, 1e-2, 0.0)
    np.testing.assert_array_equal(np.abs(np.asarray(grads[0])).sum(-1) > 0, MASK)
    (_, _), ((value, _), grads) = both(jnp.float32, 8, 1e-2, 0.0, mask=jnp.zeros((B, T), bool))
    assert float(value) == 0.0 and all(not np.asarray(g).any() for g in grads)


def test_chunked_without_a_gradient_is_the_same_value():
    out = cross_entropy(HIDDEN @ KERNEL.T, TARGETS, MASK, 1e-2)
    out_c = chunked_cross_entropy(HIDDEN, KERNEL, TARGETS, MASK, chunk=5, z_loss=1e-2)
    for a, b in zip(out, out_c):
        np.testing.assert_allclose(b, a, rtol=1e-5)


def test_a_target_that_shares_the_largest_logit_is_not_counted_as_correct():
    kernel = jnp.zeros((V, D)).at[3].set(1.0).at[40].set(1.0)
    hidden, mask = jnp.ones((1, 2, D)), jnp.ones((1, 2), bool)
    for chunk in (V, 16, 7):
        tied = chunked_cross_entropy(hidden, kernel, jnp.array([[3, 40]]), mask, chunk=chunk)
        alone = chunked_cross_entropy(
            hidden, kernel.at[3].add(1e-3), jnp.array([[3, 40]]), mask, chunk=chunk
        )
        np.testing.assert_array_equal(tied.correct, [[False, False]])
        np.testing.assert_array_equal(alone.correct, [[True, False]])


def test_logits_that_are_no_numbers_come_through():
    for bad in (jnp.nan, jnp.inf):
        out = chunked_cross_entropy(
            HIDDEN.at[0, 0].set(bad), KERNEL, TARGETS, jnp.ones((B, T), bool), chunk=16
        )
        assert (
            not np.isfinite(out.nll[0, 0])
            and np.all(np.isfinite(out.nll[0, 1:]))
            and np.all(np.isfinite(out.nll[1]))
        )


def largest_float32(jaxpr) -> int:
    """Most elements of any float32 value made anywhere in a jaxpr, its inner loops and calls
    included.
    """
    most = 0
    for eqn in jaxpr.eqns:
        for var in eqn.outvars:
            if getattr(var.aval, "dtype", None) == jnp.float32:
                most = max(most, math.prod(var.aval.shape))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                most = max(most, largest_float32(inner))
    return most


def test_no_b_t_v_float32_array_in_loss_and_gradient():
    def plain(h, k):
        return cross_entropy(h @ k.T, TARGETS, MASK, 1e-2).total

    def chunked(h, k):
        return chunked_cross_entropy(h, k, TARGETS, MASK, chunk=16, z_loss=1e-2).total

    def make(f):
        return jax.make_jaxpr(jax.jit(jax.value_and_grad(f, (0, 1))))(HIDDEN, KERNEL).jaxpr

    assert largest_float32(make(plain)) == B * T * V
    assert largest_float32(make(chunked)) == B * T * 16


@pytest.mark.parametrize("chunk", [-1, 0, V + 1])
def test_a_chunk_that_cannot_be_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk {chunk} is not between 1 and the {V} tokens"):
        chunked_cross_entropy(HIDDEN, KERNEL, TARGETS, MASK, chunk=chunk)


@pytest.mark.parametrize("chunk", [64, 24, 7])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_a_bias_of_the_logits_has_its_value_and_gradient(chunk, cap):
    bias = jnp.asarray(np.random.default_rng(1).normal(size=V), jnp.float32)

    def plain(hidden, kernel, bias):
        return cross_entropy(
            soft_cap(hidden @ kernel.T + bias[None, None], cap), TARGETS, MASK, 1e-3
        ).total

    def chunked(hidden, kernel, bias):
        return chunked_cross_entropy(
            hidden, kernel, TARGETS, MASK, chunk=chunk, softcap=cap, z_loss=1e-3, bias=bias
        ).total

    (a, d_a), (b, d_b) = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(HIDDEN, KERNEL, bias) for f in (plain, chunked)
    )
    assert float(b) == pytest.approx(float(a), rel=1e-6)
    for x, y in zip(d_a, d_b, strict=True):
        np.testing.assert_allclose(y, x, atol=1e-5)
