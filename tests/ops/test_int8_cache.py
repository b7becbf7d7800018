"""Keys and values in int8: the error that is promised, in every layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.attention import Options, attention
from llm_jax.ops.cache import (
    Chunk,
    Pages,
    Quantized,
    Slots,
    key_value_cache,
    latent_cache,
    paged_cache,
    quantize,
    quantized_attention,
)
from llm_jax.ops.masks import Mask

B, T, N, K, H, W, S = 2, 3, 4, 2, 8, 6, 12
RNG = np.random.default_rng(0)


def normal(*shape):
    # Vectors of very different sizes, as the keys of released models are.
    sizes = np.exp(RNG.normal(size=(*shape[:-1], 1)) * 2)
    return (RNG.normal(size=shape) * sizes).astype(np.float32)


def test_each_number_is_off_by_half_a_scale_at_most():
    x = normal(50, 7, H)
    kept = quantize(jnp.asarray(x))
    assert kept.numbers.dtype == jnp.int8 and kept.scales.shape == (50, 7)
    np.testing.assert_allclose(kept.scales, np.abs(x).max(-1) / 127, rtol=1e-6)
    off = np.abs(np.asarray(kept.floats(jnp.float32)) - x)
    assert (off <= np.asarray(kept.scales)[..., None] * 0.5001).all()
    assert np.abs(kept.numbers).max() == 127


def test_the_error_of_a_score_is_bounded():
    """|Δscore| <= ‖q‖₁·s/2."""
    q, k = normal(40, H), normal(60, H)
    kept = quantize(jnp.asarray(k))
    scores = (q @ np.asarray(kept.numbers, np.float32).T) * np.asarray(kept.scales)
    bound = np.abs(q).sum(1)[:, None] * np.asarray(kept.scales) / 2
    off = np.abs(scores - q @ k.T)
    assert (off <= bound * 1.001 + 1e-5).all()
    # The bound is no empty one.
    assert (off > bound / 20).mean() > 0.5


def test_vectors_of_zeros_and_what_is_not_finite():
    x = jnp.zeros((4, H)).at[1, 2].set(jnp.nan).at[2, 3].set(jnp.inf).at[3, 0].set(1e-30)
    back = quantize(x).floats(jnp.float32)
    assert not back[0].any() and np.isfinite(back[3]).all() and back[3, 0] > 0
    assert not np.isfinite(back[1]).all() and not np.isfinite(back[2]).all()


def test_attention_is_that_over_the_dequantized():
    q, k, v = normal(B, T, N, H), normal(B, K, S, H), normal(B, K, S, W)
    keys, values = quantize(jnp.asarray(k)), quantize(jnp.asarray(v))
    at = jnp.array([[4, 5, 6], [9, 10, 11]])
    sinks = jnp.asarray(RNG.normal(size=N), jnp.float32)
    mask = Mask(window=5, q_index=at)
    options = Options(0.3, 2.0, sinks)
    got = quantized_attention(jnp.asarray(q), keys, values, mask, options)
    wanted = attention(
        jnp.asarray(q),
        keys.floats(jnp.float32).swapaxes(1, 2),
        values.floats(jnp.float32).swapaxes(1, 2),
        mask,
        scale=0.3,
        softcap=2.0,
        sinks=sinks,
    )
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "ring", "pages", "latent", "latent pages"])
def test_what_is_read_is_what_was_written_within_half_a_scale(kind):
    pages = Pages(4, B * 3) if "pages" in kind else None
    slots = Slots(B, S, int8=True, pages=pages)
    table = jnp.arange(B * 3, dtype=jnp.int32).reshape(B, 3) if pages else None
    heads = () if "latent" in kind else (K,)
    k, v = normal(B, 8, *heads, H), normal(B, 8, *heads, W)
    window = 4 if kind == "ring" else 0
    if "latent" in kind:
        cache = latent_cache(slots, H, W, jnp.float32)
    elif pages:
        cache = paged_cache(slots, K, (H, W), jnp.float32)
    else:
        cache = key_value_cache(slots, K, (H, W), jnp.float32, window=window)
    stored = [a for a in jax.tree.leaves(cache) if a.dtype == jnp.int8]
    assert stored
    for start in (0, 1, 2, 3):
        chunk = Chunk(jnp.full(B, 2 * start), jnp.full(B, 2), 2, table=table)
        new = (k[:, 2 * start : 2 * start + 2], v[:, 2 * start : 2 * start + 2])
        cache, keys, values = cache.write(chunk, *map(jnp.asarray, new))
        at = cache.positions(chunk)
    places = np.arange(8) if at is None else np.asarray(at)[0]
    for slot, position in enumerate(places[: keys.shape[1]]):
        if position < 8 and position >= (8 - window if window else 0):
            for read, x in ((keys, k), (values, v)):
                exact = x[:, position]
                half = np.abs(exact).max(-1, keepdims=True) / 254
                kept = "latent" in kind and read is values
                bound = 0 if kept else half * 1.001
                assert (np.abs(np.asarray(read)[:, slot] - exact) <= bound).all()


def test_a_cache_is_little_more_than_half_of_one_in_bfloat16():
    def size(int8):
        cache = key_value_cache(Slots(1, 64, int8=int8), 8, (128, 128), jnp.bfloat16)
        return sum(a.nbytes for a in jax.tree.leaves(cache))

    assert size(False) / size(True) == pytest.approx(2 * 128 / (128 + 4))
    assert isinstance(
        key_value_cache(Slots(1, 4, int8=True), 1, (4, 4), jnp.bfloat16).keys, Quantized
    )
