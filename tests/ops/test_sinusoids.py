"""2-D sinusoids against the formulas of MAE and of the ViT baselines."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import grid_positions, sinusoidal_2d


def waves(at, frequencies):
    angles = np.outer(at, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def test_positions_go_row_by_row():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("inclusive", [False, True])
def test_the_first_half_is_the_column_and_the_second_the_row(inclusive):
    dim, height, width = 16, 3, 5
    exponents = np.arange(dim // 4) / (dim // 4 - inclusive)
    frequencies = 10000.0**-exponents
    rows = np.repeat(np.arange(height), width)
    columns = np.tile(np.arange(width), height)
    expected = np.concatenate([waves(columns, frequencies), waves(rows, frequencies)], axis=1)
    out = sinusoidal_2d(grid_positions(height, width), dim, inclusive=inclusive)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_golden_values():
    """By hand: width 8, patch at row 2 and column 1, frequencies 1 and 1/100."""
    out = sinusoidal_2d(jnp.array([2, 1]), 8)
    expected = [0.841471, 0.0099998, 0.540302, 0.99995, 0.909297, 0.0199987, -0.416147, 0.9998]
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "dim", "message"),
    [((3, 2), 6, "multiple of 4"), ((3, 3), 8, "expected \\[..., 2\\]")],
)
def test_wrong_shapes_are_refused(positions, dim, message):
    with pytest.raises(ValueError, match=message):
        sinusoidal_2d(jnp.zeros(positions), dim)


def test_one_inclusive_wave_is_refused():
    with pytest.raises(ValueError, match="at least 8"):
        sinusoidal_2d(jnp.zeros((1, 2)), 4, inclusive=True)
