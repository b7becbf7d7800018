"""Buckets of distances, the bias of relative positions, places in segments, and one vector for each
row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import (
    Mask,
    attention,
    first_token,
    last_token,
    mean_pool,
    relative_bias,
    within_segments,
)
from llm_jax.ops.relative import distance_buckets


def test_buckets_written_out():
    """Half of the buckets hold one distance; two of the others double the distance, and the last
    has all from 16 on.
    """
    wanted = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7]
    assert distance_buckets(8, 16).tolist() == wanted


@pytest.mark.parametrize(("buckets", "distance"), [(1, 10), (8, 4)])
def test_too_few_buckets_are_named(buckets, distance):
    with pytest.raises(
        ValueError,
        match=(
            f"{buckets} buckets up to distance {distance}: use at least 2, and a distance of more"
            " than"
        ),
    ):
        distance_buckets(buckets, distance)


@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_that_of_the_bucket(causal):
    table = jnp.arange(16.0).reshape(8, 2) * 10
    q, k = jnp.array([[3, 20]]), jnp.arange(24)[None]
    bias = np.asarray(relative_bias(table, q, k, causal=causal, max_distance=12))
    known = distance_buckets(8 if causal else 4, 12)
    for (t, place), s, n in [
        ((i, p), s, n) for i, p in enumerate((3, 20)) for s in range(24) for n in range(2)
    ]:
        apart = min(max(place - s, 0) if causal else abs(place - s), 12)
        bucket = known[apart] + (4 if not causal and s > place else 0)
        assert bias[0, n, t, s] == table[bucket, n]


def tensors(B=2, T=5, S=7, N=4, K=2, H=8):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    )
    return q, k, v, jnp.asarray(rng.normal(size=(B, N, T, S)), jnp.float32)


@pytest.mark.parametrize("rows", [1, 2])
def test_attention_with_a_bias_is_its_definition(rows):
    q, k, v, bias = tensors()
    bias = bias[:rows]
    out = np.asarray(attention(q, k, v, Mask(causal=False), bias=bias, scale=0.7))
    for b, n in np.ndindex(2, 4):
        scores = (
            0.7 * np.asarray(q)[b, :, n] @ np.asarray(k)[b, :, n // 2].T
            + np.asarray(bias)[b % rows, n]
        )
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(
            out[b, :, n],
            weights / weights.sum(-1, keepdims=True) @ np.asarray(v)[b, :, n // 2],
            atol=1e-5,
        )
    gradient = jax.grad(lambda b: jnp.sum(attention(q, k, v, Mask(causal=False), bias=b) ** 2))(
        bias
    )
    assert np.isfinite(gradient).all() and (np.abs(gradient) > 0).all()


def test_other_backends_refuse_a_bias_by_name():
    q, k, v, bias = tensors()
    with pytest.raises(
        ValueError, match="'dot_product' cannot add a bias to the scores; use backend 'xla'"
    ):
        attention(q, k, v, Mask(causal=False), bias=bias, backend="dot_product")


def test_a_bias_of_another_shape_is_named():
    q, k, v, bias = tensors()
    with pytest.raises(
        ValueError, match=r"attention bias \(2, 4, 5, 6\) does not broadcast to \[B, N, T, S\]"
    ):
        attention(q, k, v, Mask(causal=False), bias=bias[..., :6])


def test_places_in_segments():
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 1, 1]])
    wanted = [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(within_segments(segments), wanted)


def test_vectors_of_rows_do_not_see_padding():
    hidden = jnp.array(
        [
            [[1.0, 5.0], [3.0, 7.0], [9.0, 9.0]],
            [[9.0, 9.0], [2.0, 4.0], [4.0, 0.0]],
            [[9.0, 9.0]] * 3,
        ]
    )
    mask = jnp.array([[True, True, False], [False, True, True], [False, False, False]])
    np.testing.assert_array_equal(mean_pool(hidden, mask), [[2.0, 6.0], [3.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(first_token(hidden, mask)[:2], [[1.0, 5.0], [2.0, 4.0]])
    np.testing.assert_array_equal(last_token(hidden, mask)[:2], [[3.0, 7.0], [4.0, 0.0]])
    assert mean_pool(hidden.astype(jnp.bfloat16), mask).dtype == jnp.bfloat16
