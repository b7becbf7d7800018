"""Attention over latents, absorbed, against attention over the keys and values made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import Mask, attention
from llm_jax.ops.latent import absorbed_attention, absorbing_pays, expand

B, T, S, N, H, R, V, C = 2, 5, 9, 4, 10, 4, 6, 12


def tensors():
    """q, latent, rotated, key, value, sinks"""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, S, C), (B, S, R), (C, N, H - R), (C, N, V), (N,)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


def test_keys_and_values_by_hand():
    _, latent, rotated, key, value, _ = (np.asarray(a, np.float64) for a in tensors())
    k, v = expand(*map(jnp.float32, (latent, rotated, key, value)))
    assert k.shape == (B, S, N, H) and v.shape == (B, S, N, V)
    for b, s, n in np.ndindex(B, S, N):
        np.testing.assert_allclose(
            k[b, s, n], [*rotated[b, s], *(latent[b, s] @ key[:, n])], atol=1e-5
        )
        np.testing.assert_allclose(v[b, s, n], latent[b, s] @ value[:, n], atol=1e-5)


@pytest.mark.parametrize("softcap, sunk, window", [(0.0, False, 0), (2.0, True, 0), (0.0, True, 3)])
def test_absorbed_attention_is_attention_over_what_was_absorbed(softcap, sunk, window):
    *given, sinks = tensors()
    mask = Mask(window=window, q_index=jnp.array([[4, 5, 6, 7, 8], [2, 3, 4, 5, 6]]))
    how = {"mask": mask, "scale": 0.3, "softcap": softcap, "sinks": sinks if sunk else None}

    def absorbed(q, latent, rotated, key, value):
        return absorbed_attention(q, latent, rotated, key, value, **how)

    def expanded(q, *latents):
        return attention(q, *expand(*latents), **how)

    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, N, V)), jnp.float32)
    np.testing.assert_allclose(absorbed(*given), expanded(*given), atol=1e-5)
    slopes = [
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weight), range(5))(*given)
        for f in (absorbed, expanded)
    ]
    for one, other in zip(*slopes):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


def test_absorbing_pays_for_few_queries():
    """DeepSeek-V3's widths, a key and a head: 1088 products a query absorbed; else 512·256 once and
    320 a query. 131072/768 is 170.7.
    """
    widths = {
        "heads_dim": 192,
        "value_dim": 128,
        "latent_dim": 512,
        "rope_dim": 64,
    }
    assert [absorbing_pays(t, **widths) for t in (1, 170, 171, 4096)] == [True, True, False, False]
