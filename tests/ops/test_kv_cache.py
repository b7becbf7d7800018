"""Writing into the key/value cache, each row at its own place."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import init_cache
from llm_jax.ops.kv_cache import as_cached, init_latent_cache, write


def test_an_empty_cache():
    cache = init_cache(3, 2, 5, 4, 8, jnp.bfloat16)
    assert len(cache.k) == len(cache.v) == 3
    assert cache.k[0].shape == cache.v[0].shape == (2, 4, 5, 8) and cache.k[0].dtype == jnp.bfloat16
    assert cache.length is None
    assert init_cache(1, 2, 5, 4, 8, jnp.bfloat16, 6).v[0].shape == (2, 4, 5, 6)
    latents = init_latent_cache(3, 2, 5, 12, 4, jnp.bfloat16)
    assert [a.shape for a in latents.k] == [(2, 5, 12)] * 3 and [a.shape for a in latents.v] == [
        (2, 5, 4)
    ] * 3


@pytest.mark.parametrize("starts", [[0, 0], [0, 3], [2, 1], [3, 3]])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_row_is_written_at_its_own_start(starts, rows):
    rng = np.random.default_rng(0)
    slots, new = (
        rng.normal(size=(rows, 2, 5, 3)),
        rng.normal(size=(rows, 2, 2, 3)),
    )  # [B, K, S, H] and [B, T, K, H]
    expected = slots.copy()
    for b in range(rows):
        for t in range(2):
            expected[b, :, starts[b] + t] = new[b, t]

    def array(a):
        return jnp.asarray(a, jnp.float32)

    cached = as_cached(array(new))
    starts, expected = jnp.asarray(starts[:rows]), expected.astype(np.float32)
    np.testing.assert_array_equal(write(array(slots), cached, starts, 2), expected)

    def last(a):
        return a.swapaxes(2, 3)

    np.testing.assert_array_equal(
        write(last(array(slots)), last(cached), starts, 3), last(expected)
    )
    if starts.max() == 0:
        np.testing.assert_array_equal(write(array(slots), cached, None, 2), expected)
    of_all_heads = write(array(slots[:, 0]), array(new[:, :, 0]), starts, 1)
    np.testing.assert_array_equal(of_all_heads, expected[:, 0])


@pytest.mark.parametrize("rows", [1, 2])
def test_past_the_end_a_slice_is_shifted_back(rows):
    slots, new = jnp.zeros((rows, 1, 4, 1)), jnp.ones((rows, 1, 2, 1))
    written = write(slots, new, jnp.full(rows, 3), 2)
    np.testing.assert_array_equal(written[:, 0, :, 0], [[0, 0, 1, 1]] * rows)


def test_rows_go_into_the_cache_and_back():
    rows = np.arange(120).reshape(2, 5, 3, 4)  # [B, S, K, H]
    cached = as_cached(jnp.asarray(rows))
    assert cached.shape == (2, 3, 5, 4) and cached[1, 2, 4, 3] == rows[1, 4, 2, 3]
    np.testing.assert_array_equal(as_cached(cached), rows)


def test_the_cache_keeps_its_dtype():
    slots = jnp.zeros((2, 1, 4, 2), jnp.bfloat16)
    assert write(slots, jnp.ones((2, 1, 1, 2)), jnp.zeros(2, jnp.int32), 2).dtype == jnp.bfloat16
