"""What is written for XLA's CPU backend, beside its plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.cpu import materialize, output_first_product, project


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
