"""Writing into the key/value cache, each row at its own place."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import init_cache
from llm_jax.ops.kv_cache import write


def test_an_empty_cache():
    cache = init_cache(3, 2, 5, 4, 8, jnp.bfloat16)
    assert len(cache.k) == len(cache.v) == 3
    assert cache.k[0].shape == (2, 4, 5, 8) and cache.k[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(cache.length, [0, 0])


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


def test_the_cache_keeps_its_dtype():
    slots = jnp.zeros((2, 1, 4, 2), jnp.bfloat16)
    assert write(slots, jnp.ones((2, 1, 1, 2)), jnp.zeros(2, jnp.int32)).dtype == jnp.bfloat16
