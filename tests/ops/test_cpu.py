"""What is written for XLA's CPU backend, beside its plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.cpu import (
    materialize,
    output_first_product,
    project,
    scores,
    weighted_values,
    write_row_slice,
)


def f32(a):
    return jnp.asarray(a, jnp.float32)


@pytest.mark.parametrize(("inputs", "outputs"), [((6,), (5,)), ((3, 2), (2, 5))])
def test_project_is_a_product_with_its_gradients(inputs, outputs):
    rng, n = np.random.default_rng(1), len(inputs)
    x, kernel = f32(rng.normal(size=(4, 3, *inputs))), f32(rng.normal(size=(*inputs, *outputs)))
    out, pull = jax.vjp(lambda x, k: project(x, k, n), x, kernel)
    plain, back = jax.vjp(lambda x, k: jnp.tensordot(x, k, n), x, kernel)
    np.testing.assert_allclose(out, plain, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(pull(jnp.cos(out)), back(jnp.cos(plain))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("always_true", [True, False])
def test_materialize_gives_what_is_computed(always_true):
    """And NaN where its caller breaks the promise, not some other numbers."""
    out = jax.jit(lambda x, sure: materialize(lambda: {"a": jnp.sin(x)}, sure))(
        jnp.arange(3.0), always_true
    )
    expected = np.sin(np.arange(3.0)) if always_true else np.full(3, np.nan)
    np.testing.assert_allclose(out["a"], expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [(), (1,), (4, 8), (4, 9)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [((6,), (5,)), ((6,), (2, 5)), ((3, 2), (5,)), ((3, 2), (2, 5))]
)
def test_a_product_with_outputs_first_is_that_with_inputs_first(rows, inputs, outputs):
    """Few rows are multiplied in another order than many."""
    rng, n, m = np.random.default_rng(1), len(inputs), len(outputs)
    x, weight = rng.normal(size=(*rows, *inputs)), rng.normal(size=(*outputs, *inputs))
    expected = np.tensordot(x, weight, (range(len(rows), len(rows) + n), range(m, m + n)))
    out, pull = jax.vjp(lambda x, w: output_first_product(x, w, n), f32(x), f32(weight))
    assert out.shape == (*rows, *outputs)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    kernel = f32(weight).transpose(*range(m, m + n), *range(m))
    same, back = jax.vjp(lambda x, k: project(x, k, n), f32(x), kernel)
    d_x, d_weight = pull(jnp.cos(out))
    np.testing.assert_allclose(d_x, back(jnp.cos(same))[0], atol=1e-5)
    np.testing.assert_allclose(
        d_weight.transpose(*range(m, m + n), *range(m)), back(jnp.cos(same))[1], atol=1e-5
    )


@pytest.mark.parametrize("queries", [1, 3, 8])
def test_scores_and_values_of_a_step_are_products(queries):
    """One query, a few as a decoding step has them, and more."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(2, 3, n, 16)) for n in (queries, 32, 32))
    weights = rng.random(size=(2, 3, queries, 32))
    np.testing.assert_allclose(
        scores(f32(q), f32(k)), np.einsum("bkqh,bksh->bkqs", q, k), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        weighted_values(f32(weights), f32(v), jnp.float32),
        np.einsum("bkqs,bksh->bkqh", weights, v),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("start", [0, 2, 5])
def test_a_slice_of_one_row_is_written_where_it_starts(start):
    slots, new = np.zeros((1, 2, 6, 3), np.float32), np.ones((1, 2, 1, 3), np.float32)
    out = jax.jit(lambda s, n, at: write_row_slice(s, n, at, 2))(slots, new, jnp.int32(start))
    expected = slots.copy()
    expected[:, :, start] = 1
    np.testing.assert_array_equal(out, expected)
