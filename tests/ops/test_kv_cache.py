"""Writing into the key/value cache, each row at its own place."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import init_cache
from llm_jax.ops.kv_cache import init_latent_cache, write


def test_an_empty_cache():
    cache = init_cache(3, 2, 5, 4, 8, jnp.bfloat16)
    assert len(cache.k) == len(cache.v) == 3
    assert cache.k[0].shape == (2, 4, 5, 8) and cache.k[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(cache.length, [0, 0])
    assert init_cache(1, 2, 5, 4, 8, jnp.bfloat16, 6).v[0].shape == (2, 4, 5, 6)
    latents = init_latent_cache(3, 2, 5, 12, 4, jnp.bfloat16)
    assert [a.shape for a in latents.k] == [(2, 5, 12)] * 3 and [a.shape for a in latents.v] == [(2, 5, 4)] * 3


@pytest.mark.parametrize("starts", [[0, 3], [2, 1], [3, 3]])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_row_is_written_at_its_own_start(starts, rows):
    rng = np.random.default_rng(0)
    slots, new = rng.normal(size=(rows, 2, 5, 3)), rng.normal(size=(rows, 2, 2, 3))  # [B, K, S, H] and [B, T, K, H]
    expected = slots.copy()
    for b in range(rows):
        for t in range(2):
            expected[b, :, starts[b] + t] = new[b, t]
    out = write(jnp.asarray(slots, jnp.float32), jnp.asarray(new, jnp.float32), jnp.asarray(starts[:rows]))
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    of_all_heads = write(*(jnp.asarray(a, jnp.float32) for a in (slots[:, 0], new[:, :, 0])), jnp.asarray(starts[:rows]))
    np.testing.assert_array_equal(of_all_heads, expected[:, 0].astype(np.float32))


def test_the_cache_keeps_its_dtype():
    slots = jnp.zeros((2, 1, 4, 2), jnp.bfloat16)
    assert write(slots, jnp.ones((2, 1, 1, 2)), jnp.zeros(2, jnp.int32)).dtype == jnp.bfloat16
