"""Losses as others call them: weights of tokens, gradients by token, targets that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from llm_jax.ops import chunked_cross_entropy, cross_entropy, smoothed_nll, z_loss

B, T, D, V = 2, 5, 4, 9
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, (B, T)))
WEIGHTS = jnp.array([[1, 0, 0.5, -2, 3], [0, 0, 1, 0.25, 1]], jnp.float32)


def plain(hidden, targets, mask=None, **settings):
    return cross_entropy(jnp.einsum("btd,vd->btv", hidden, KERNEL), targets, mask, **settings)


def chunked(hidden, targets, mask=None, **settings):
    return chunked_cross_entropy(hidden, KERNEL, targets, mask, chunk=4, **settings)


both = pytest.mark.parametrize("loss", [plain, chunked])


def assert_near(out, expected):
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def nll_by_hand(hidden):
    logs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, KERNEL), axis=-1)
    return -jnp.take_along_axis(logs, TARGETS[..., None], axis=-1)[..., 0]


@both
def test_a_mask_of_numbers_weights_each_token(loss):
    def by_hand(hidden):
        return jnp.sum(nll_by_hand(hidden) * WEIGHTS)

    value, gradient = jax.value_and_grad(by_hand)(HIDDEN)
    out, d_hidden = jax.value_and_grad(lambda h: loss(h, TARGETS, WEIGHTS).total)(HIDDEN)
    assert_near(out, value)
    assert_near(d_hidden, gradient)
    nll = loss(HIDDEN, TARGETS, WEIGHTS).nll
    assert_near(nll, jnp.where(WEIGHTS != 0, nll_by_hand(HIDDEN), 0.0))


@both
def test_weights_have_a_gradient(loss):
    d_weights = jax.grad(lambda w: loss(HIDDEN, TARGETS, w).total)(WEIGHTS)
    assert_near(d_weights, jnp.where(WEIGHTS != 0, nll_by_hand(HIDDEN), 0.0))


@both
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16])
def test_ones_and_zeros_are_a_bool_mask(loss, dtype):
    counted = WEIGHTS != 0
    out = loss(HIDDEN, TARGETS, counted.astype(dtype), z_loss=0.1, label_smoothing=0.1)
    expected = loss(HIDDEN, TARGETS, counted, z_loss=0.1, label_smoothing=0.1)
    jax.tree.map(assert_near, out, expected)
    assert out.correct.dtype == bool


@both
def test_no_mask_counts_all(loss):
    expected = loss(HIDDEN, TARGETS, jnp.ones((B, T), bool))
    jax.tree.map(assert_near, loss(HIDDEN, TARGETS), expected)


@both
def test_a_gradient_goes_through_each_token(loss):
    expected = jax.grad(lambda h: jnp.sum(nll_by_hand(h) * WEIGHTS))(HIDDEN)
    assert_near(jax.grad(lambda h: jnp.sum(loss(h, TARGETS).nll * WEIGHTS))(HIDDEN), expected)


@both
@pytest.mark.parametrize("target", [-100, -1, V, V + 3])
def test_a_counted_target_that_is_no_token_is_never_a_number(loss, target):
    targets = TARGETS.at[0, 1].set(target)
    counted = jnp.ones((B, T), bool)

    @jax.jit
    def run(hidden, counted):
        return jax.value_and_grad(lambda h: loss(h, targets, counted).total)(hidden)

    value, gradient = run(HIDDEN, counted)
    assert np.isnan(value) and np.isnan(gradient[0, 1]).all()
    assert np.isfinite(gradient[1]).all()
    checked = checkify.checkify(lambda h: loss(h, targets).total, errors=checkify.float_checks)
    with pytest.raises(checkify.JaxRuntimeError, match="nan"):
        checked(HIDDEN)[0].throw()
    with jax.debug_nans(True), pytest.raises(ValueError, match=rf"target {target} at \(0, 1\)"):
        loss(HIDDEN, targets)

    value, gradient = run(HIDDEN, counted.at[0, 1].set(False))
    by_mask, d_hidden = jax.value_and_grad(
        lambda h: loss(h, TARGETS, counted.at[0, 1].set(False)).total
    )(HIDDEN)
    assert_near(value, by_mask)
    assert_near(gradient, d_hidden)
    assert (gradient[0, 1] == 0).all()


@both
@pytest.mark.parametrize("index", [-100, -1, 3])
def test_an_ignored_index_is_a_mask(loss, index):
    targets = TARGETS.at[0, 1].set(index).at[1, 4].set(index)
    counted = targets != index
    jax.tree.map(
        assert_near,
        loss(HIDDEN, targets, ignore_index=index),
        loss(HIDDEN, targets, counted),
    )
    jax.tree.map(
        assert_near,
        loss(HIDDEN, targets, WEIGHTS, ignore_index=index),
        loss(HIDDEN, targets, jnp.where(counted, WEIGHTS, 0)),
    )


def test_terms_as_functions():
    logits = jnp.einsum("btd,vd->btv", HIDDEN, KERNEL)
    plain_total = cross_entropy(logits, TARGETS).total
    out = cross_entropy(logits, TARGETS, z_loss=0.3)
    assert_near(out.total, plain_total + 0.3 * jnp.sum(z_loss(logits)))
    out = cross_entropy(logits, TARGETS, label_smoothing=0.2)
    assert_near(out.total, jnp.sum(smoothed_nll(logits, TARGETS, 0.2)))
    # By definition: 0.8 of the target's and 0.2 of the mean of all.
    logs = jax.nn.log_softmax(logits, axis=-1)
    assert_near(
        smoothed_nll(logits, TARGETS, 0.2),
        0.8 * nll_by_hand(HIDDEN) - 0.2 * jnp.mean(logs, axis=-1),
    )
    assert np.isnan(smoothed_nll(logits[0, 0], jnp.array(V), 0.1))


BAD = {
    "targets of other tokens": ({"targets": TARGETS.T}, r"targets \(5, 2\) and mask"),
    "a mask of other tokens": ({"mask": jnp.ones(T)}, r"mask \(5,\) must have the shape"),
    "targets that are numbers": ({"targets": TARGETS * 1.0}, "float32; they must be token ids"),
    "a share beyond 1": ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
}


@both
@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_named(loss, what):
    given, said = BAD[what]
    with pytest.raises(ValueError, match=said):
        loss(HIDDEN, **({"targets": TARGETS} | given))


def test_swapped_kernel_axes_are_named():
    with pytest.raises(ValueError, match=r"\[B, T, D\], \[V, D\] and \[V\]"):
        chunked_cross_entropy(HIDDEN, KERNEL.T, TARGETS, chunk=2)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 9\); they must be \[B, T, V\]"):
        cross_entropy(jnp.zeros((B, V)), TARGETS[:, 0])
