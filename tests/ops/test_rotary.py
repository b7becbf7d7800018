"""Interleaved and multi-axis rotations: against formulas, and against plain rope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import (
    axial_frequencies,
    grid_positions,
    multi_axis_angles,
    rope,
    rope_angles,
    rope_frequencies,
    rope_interleaved,
    rotate,
    rotate_interleaved,
)
from llm_jax.ops.rotary import axis_of_frequencies

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 16))
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 0, 1, 900, 2]])


def test_interleaved_pairs_are_complex_numbers_times_a_turn():
    """Su et al. 2021, equation 13: number 2i + i·number 2i+1, times exp(i · position · theta_i)."""
    frequencies, _ = rope_frequencies(16)
    turn = np.exp(1j * np.asarray(POSITIONS)[..., None, None] * frequencies)
    x = np.asarray(X)
    expected = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    out = np.asarray(rope_interleaved(X, POSITIONS))
    np.testing.assert_allclose(out[..., ::2], expected.real, atol=2e-5)
    np.testing.assert_allclose(out[..., 1::2], expected.imag, atol=2e-5)


def test_interleaved_is_plain_rope_in_another_order():
    order = np.arange(16).reshape(8, 2).T.reshape(-1)
    np.testing.assert_allclose(
        rope_interleaved(X, POSITIONS)[..., order], rope(X[..., order], POSITIONS), atol=1e-6
    )


def test_a_part_of_a_head_is_rotated():
    frequencies, _ = rope_frequencies(8)
    out = rotate_interleaved(X, *rope_angles(POSITIONS, frequencies))
    np.testing.assert_array_equal(out[..., 8:], X[..., 8:])
    np.testing.assert_allclose(out[..., :8], rope_interleaved(X[..., :8], POSITIONS), atol=1e-6)


@pytest.mark.parametrize("layout", ["sections", "interleaved"])
def test_the_same_position_on_all_axes_is_plain_rope(layout):
    frequencies, _ = rope_frequencies(16)
    positions = jnp.stack([POSITIONS] * 3, axis=-1)
    angles = multi_axis_angles(positions, frequencies, (4, 2, 2), layout=layout)
    np.testing.assert_allclose(rotate(X, *angles), rope(X, POSITIONS), atol=1e-6)


def test_each_frequency_turns_with_its_axis():
    """Qwen2-VL's sections follow each other; Qwen3-VL's take turns, the first has what is left."""
    assert axis_of_frequencies((2, 3, 3)).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert axis_of_frequencies((4, 2, 2), "interleaved").tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    positions = jnp.array([[[1, 20, 300]]])
    sin, cos = multi_axis_angles(positions, np.float32([1, 0.5, 0.25, 0.125]), (2, 1, 1))
    angles = np.float32([1, 0.5, 5, 37.5])
    np.testing.assert_allclose(sin[0, 0], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(cos[0, 0], np.cos(angles), atol=1e-6)


def test_axial_frequencies_give_each_axis_all_waves():
    waves = [1.0, 10000**-0.5]
    np.testing.assert_allclose(axial_frequencies((2, 2)), np.float32([*waves, *waves]), rtol=1e-6)


def test_axial_scores_depend_on_both_distances_alone():
    frequencies = axial_frequencies((4, 4), theta=100.0)
    q = jnp.broadcast_to(X[:1, :1, :1], (1, 12, 1, 16))
    k = jnp.broadcast_to(X[1:, 1:2, :1], (1, 12, 1, 16))
    angles = multi_axis_angles(grid_positions(3, 4)[None], frequencies, (4, 4))
    scores = jnp.einsum("btnh,bsnh->ts", rotate(q, *angles), rotate(k, *angles))
    grid = np.asarray(scores).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(grid[0, 1, 1, 3], grid[1, 0, 2, 2], atol=1e-4)
    assert abs(grid[0, 0, 1, 0] - grid[0, 0, 0, 1]) > 1e-3


def test_wrong_sections_are_refused():
    frequencies, _ = rope_frequencies(16)
    positions = jnp.zeros((1, 2, 2), jnp.int32)
    with pytest.raises(ValueError, match="add up to 7"):
        multi_axis_angles(positions, frequencies, (4, 3))
    with pytest.raises(ValueError, match="one axis for each of the 3 sections"):
        multi_axis_angles(positions, frequencies, (4, 2, 2))
    with pytest.raises(ValueError, match="layout is 'other'"):
        multi_axis_angles(positions, frequencies, (4, 4), layout="other")
    with pytest.raises(ValueError, match="cannot be interleaved"):
        multi_axis_angles(positions, frequencies, (2, 6), layout="interleaved")
