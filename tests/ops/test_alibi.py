"""ALiBi: slopes of the paper and its released code; the bias with packed rows and a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import Mask, alibi_bias, alibi_slopes, attention, write_cache


def test_slopes_of_a_power_of_two_are_those_of_the_paper():
    halves = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    np.testing.assert_array_equal(alibi_slopes(8), np.float32(halves))
    np.testing.assert_allclose(alibi_slopes(16)[:2], [2**-0.5, 0.5], rtol=1e-7)
    np.testing.assert_array_equal(alibi_slopes(1), np.float32([2**-8]))


def test_another_number_of_heads_takes_every_second_slope_of_the_next_power():
    np.testing.assert_allclose(
        alibi_slopes(12), [*alibi_slopes(8), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6
    )
    np.testing.assert_allclose(alibi_slopes(3), [2**-4, 2**-8, 2**-2], rtol=1e-6)


@pytest.mark.parametrize("num_heads", [0, -1])
def test_no_heads_are_refused(num_heads):
    with pytest.raises(ValueError, match="num_heads is"):
        alibi_slopes(num_heads)


def test_the_bias_is_the_distance_times_the_slope():
    index = jnp.arange(3)
    bias = alibi_bias(np.float32([0.5, 0.25]), index, index)
    distance = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    np.testing.assert_array_equal(bias, [[-0.5 * distance, -0.25 * distance]])


def test_wrong_ranks_are_refused():
    index = jnp.arange(3)
    with pytest.raises(ValueError, match="slopes have shape"):
        alibi_bias(jnp.ones((1, 2)), index, index)
    with pytest.raises(ValueError, match="k_index has shape"):
        alibi_bias(jnp.ones(2), index, jnp.zeros((1, 3, 1), jnp.int32))


def heads(key, length, rows=1):
    return [jax.random.normal(k, (rows, length, 3, 8)) for k in jax.random.split(key, 3)]


def test_attention_falls_with_the_distance():
    """Equal scores: the weights are a softmax of the bias alone, written out."""
    T = 5
    q = jnp.zeros((1, T, 1, 4))
    values = jnp.eye(T)[None, :, None]
    index = jnp.arange(T)
    out = attention(q, q, values, Mask(), bias=alibi_bias(np.float32([0.7]), index, index))
    for t in range(T):
        weights = np.exp(-0.7 * (t - np.arange(t + 1)))
        expected = np.pad(weights / weights.sum(), (0, T - t - 1))
        np.testing.assert_allclose(out[0, t, 0], expected, rtol=1e-6, atol=1e-7)


@jax.jit
def attend(q, k, v, mask, q_index, k_index):
    """Attention with the bias of three heads, as one program for each shape."""
    bias = alibi_bias(alibi_slopes(3), q_index, k_index)
    return attention(q, k, v, mask, bias=bias)


def test_a_packed_row_equals_its_documents():
    """Positions that restart with each document give the same as positions in the row."""
    q, k, v = heads(jax.random.key(0), 8)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    mask = Mask(q_segments=segments, k_segments=segments)
    restarting = jnp.arange(8) % 4
    in_row = jnp.arange(8)
    whole = [attend(q, k, v, mask, index, index) for index in (restarting, in_row)]
    np.testing.assert_allclose(whole[0], whole[1], atol=1e-6)
    index = jnp.arange(4)
    for part in (slice(0, 4), slice(4, 8)):
        alone = attend(q[:, part], k[:, part], v[:, part], Mask(), index, index)
        np.testing.assert_allclose(whole[0][:, part], alone, atol=1e-6)


def test_steps_over_a_cache_equal_the_whole_row():
    q, k, v = heads(jax.random.key(1), 6, rows=2)
    index = jnp.arange(6)
    whole = attend(q, k, v, Mask(), index, index)

    def step(caches, inputs):
        t, q, k, v = inputs
        keys = write_cache(caches[0], k, t)
        values = write_cache(caches[1], v, t)
        here = jnp.full((2, 1), t)
        out = attend(q, keys, values, Mask(q_index=here), here, jnp.arange(8))
        return (keys, values), out

    caches = (jnp.zeros((2, 8, 3, 8)), jnp.zeros((2, 8, 3, 8)))
    by_step = [jnp.moveaxis(x[:, :, None], 1, 0) for x in (q, k, v)]
    _, out = jax.lax.scan(step, caches, (index, *by_step))
    np.testing.assert_allclose(jnp.moveaxis(out[:, :, 0], 0, 1), whole, atol=1e-6)
