"""What functions take beside the full form of their arguments, and what they refuse by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import ops

B, T, N, H, D, V = 2, 5, 4, 8, 6, 11
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, T, N, H)), jnp.float32)
LOGITS = jnp.asarray(RNG.normal(size=(B, V)), jnp.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)


@pytest.mark.parametrize(
    "filtered, setting",
    [(ops.top_k, 3), (ops.top_p, 0.6), (ops.min_p, 0.2), (ops.filter_logits, 0.7)],
)
def test_a_sampling_setting_is_one_number_or_one_for_each_row(filtered, setting):
    by_row = filtered(LOGITS, jnp.full(B, setting))
    np.testing.assert_array_equal(filtered(LOGITS, setting), by_row)
    np.testing.assert_array_equal(filtered(LOGITS[0], setting), by_row[0])
    with pytest.raises(ValueError, match=r"has shape \(3,\) for logits \(2, 11\)"):
        filtered(LOGITS, jnp.full(3, setting))


def test_all_settings_as_numbers():
    rows = [jnp.full(B, x) for x in (0.7, 5, 0.9, 0.05)]
    np.testing.assert_array_equal(
        ops.filter_logits(LOGITS, 0.7, 5, 0.9, 0.05), ops.filter_logits(LOGITS, *rows)
    )
    with pytest.raises(ValueError, match="sampling setting k is float32; it must be an integer"):
        ops.top_k(LOGITS, 0.5)


def test_one_key_draws_for_all_rows():
    key = jax.random.key(0)
    drawn = ops.categorical(key, jnp.zeros((512, 4)))
    assert drawn.dtype == jnp.int32
    # Each row has a draw of its own: 128 of each token are expected, with a deviation of 10.
    counts = np.bincount(drawn, minlength=4)
    assert counts.shape == (4,) and np.all(np.abs(counts - 128) < 50)
    with pytest.raises(ValueError, match="one for each row"):
        ops.categorical(jax.random.split(key, 3), LOGITS)


def test_positions_of_all_rows():
    at = jnp.arange(T)
    by_row = jnp.broadcast_to(at, (B, T))
    np.testing.assert_array_equal(ops.rope(X, at), ops.rope(X, by_row))
    np.testing.assert_array_equal(ops.sinusoidal(at, D)[0], ops.sinusoidal(by_row, D)[1])
    segments = jnp.ones((B, T), jnp.int32)
    np.testing.assert_array_equal(
        ops.segment_lengths(segments, at), ops.segment_lengths(segments, by_row)
    )
    table = jnp.ones((8, N))
    bias = ops.relative_bias(table, at, at, causal=True, max_distance=9)
    assert bias.shape == (1, N, T, T)


def test_swapped_and_missing_axes_are_named():
    at = jnp.arange(T)
    with pytest.raises(ValueError, match=r"\[B, T, N, H\].*swap its axes 1 and 2"):
        ops.rope(jnp.swapaxes(X, 1, 2), at)
    with pytest.raises(ValueError, match=r"must be \[B, T, N, H\]"):
        ops.rope(X[0], at)
    with pytest.raises(ValueError, match="positions of 3 rows of 5 tokens"):
        ops.rope(X, jnp.zeros((3, T), int))
    with pytest.raises(ValueError, match=r"positions have shape \(1, 1, 5\)"):
        ops.rope(X, at[None, None])
    with pytest.raises(ValueError, match=r"norm scale has shape \(7,\); it must be \(6,\)"):
        ops.rms_norm(HIDDEN, jnp.ones(7))
    with pytest.raises(ValueError, match="norm bias has shape"):
        ops.layer_norm(HIDDEN, jnp.ones(D), jnp.ones((1, D)))
    with pytest.raises(ValueError, match="gated_mlp shapes disagree"):
        ops.gated_mlp(HIDDEN, jnp.ones((D, 3)), jnp.ones((D, 3)), jnp.ones((D, 3)))
    with pytest.raises(ValueError, match=r"must be \[B, T, D\] and \[B, T\]"):
        ops.mean_pool(HIDDEN, jnp.ones((T, B), bool))
    with pytest.raises(ValueError, match=r"segment_ids have shape \(5,\); they must be \[B, T\]"):
        ops.within_segments(at)


def test_norms_without_a_scale():
    ones = jnp.ones(D)
    np.testing.assert_array_equal(ops.rms_norm(HIDDEN), ops.rms_norm(HIDDEN, ones))
    np.testing.assert_array_equal(ops.layer_norm(HIDDEN, None), ops.layer_norm(HIDDEN, ones))


def test_an_activation_is_a_name_or_a_function():
    kernels = (jnp.ones((D, 3)), jnp.ones((D, 3)), jnp.ones((3, D)))
    np.testing.assert_array_equal(
        ops.gated_mlp(HIDDEN, *kernels, activation=jax.nn.silu), ops.gated_mlp(HIDDEN, *kernels)
    )
    assert (ops.gated_mlp(HIDDEN, *kernels, activation=lambda x: 0 * x) == 0).all()
