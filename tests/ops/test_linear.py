"""The product behind every weight, and writing to a cache that is a plain array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import linear, write_cache
from llm_jax.ops.weights import LowRank, OutputFirst, quantize

X = jax.random.normal(jax.random.key(0), (2, 3, 4))
KERNEL = jax.random.normal(jax.random.key(1), (4, 5, 6))
BIAS = jax.random.normal(jax.random.key(2), (5, 6))


def test_it_is_a_product_and_a_sum():
    expected = np.einsum("bti,inh->btnh", X, KERNEL)
    np.testing.assert_allclose(linear(X, KERNEL), expected, atol=1e-5)
    np.testing.assert_allclose(linear(X, KERNEL, BIAS), expected + np.asarray(BIAS), atol=1e-5)


def test_several_input_axes():
    x = jax.random.normal(jax.random.key(3), (2, 4, 5))
    out = linear(x, KERNEL, num_inputs=2)
    np.testing.assert_allclose(out, np.einsum("bio,ioh->bh", x, KERNEL), atol=1e-5)


def test_any_leaf_type():
    expected = linear(X, KERNEL, BIAS)
    np.testing.assert_allclose(linear(X, OutputFirst.of(KERNEL, 1), BIAS), expected, atol=1e-5)
    added = LowRank(KERNEL, jnp.ones((4, 1)), jnp.zeros((1, 5, 6)))
    np.testing.assert_allclose(linear(X, added, BIAS), expected, atol=1e-5)
    np.testing.assert_allclose(linear(X, quantize(KERNEL, [0]), BIAS), expected, atol=0.1)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="the last axes of x must be \\(4,\\)"):
        linear(X[..., :3], KERNEL)
    with pytest.raises(ValueError, match="outputs are \\(5, 6\\)"):
        linear(X, KERNEL, BIAS.T)


def test_rows_are_written_where_they_end():
    slots = jnp.full((2, 4, 1), -1.0)
    new = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    out = write_cache(slots, new, jnp.array([0, 2]))
    assert out[..., 0].tolist() == [[1, 2, -1, -1], [-1, -1, 3, 4]]
    along = write_cache(slots.swapaxes(1, 2), new.swapaxes(1, 2), jnp.array([0, 2]), axis=2)
    np.testing.assert_array_equal(along.swapaxes(1, 2), out)


@pytest.mark.parametrize("start", [3, -1, [0, 3]])
def test_a_known_end_beyond_the_slots_is_refused(start):
    with pytest.raises(ValueError, match="do not fit 4 slots"):
        write_cache(jnp.zeros((2, 4, 1)), jnp.ones((2, 2, 1)), jnp.array(start))


def test_a_traced_end_beyond_the_slots_overwrites_nothing():
    for width in (1, 2):
        out = jax.jit(write_cache)(jnp.zeros((1, 4, 1)), jnp.ones((1, width, 1)), 4)
        assert not out.any()
    out = jax.jit(write_cache)(jnp.zeros((1, 4, 1)), jnp.array([[[1.0], [2.0]]]), 3)
    assert out[0, :, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("new", "start", "axis", "message"),
    [
        ((2, 1, 3), 0, 1, "do not fit slots"),
        ((2, 5, 1), 0, 1, "do not fit slots"),
        ((2, 1, 1), [0, 0, 0], 1, "one for each of the 2 rows"),
        ((2, 1, 1), 0, 0, "axis is 0"),
    ],
)
def test_wrong_shapes_are_refused_by_name(new, start, axis, message):
    with pytest.raises(ValueError, match=message):
        write_cache(jnp.zeros((2, 4, 1)), jnp.ones(new), jnp.array(start), axis=axis)
