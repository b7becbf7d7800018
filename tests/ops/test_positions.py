"""Rotary and sinusoidal positions: rotations, known values, and each scaling against its paper's
formula.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from rounding import Rounded, assert_close

from llm_jax.ops import rope, rope_frequencies, segment_lengths, sinusoidal
from llm_jax.ops.positions import rope_angles

SCALINGS = {
    "none": {},
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "llama3": {"theta": 500000.0, "factor": 8.0, "original_length": 8192},
    "yarn": {"factor": 4.0, "original_length": 4096},
}


def rotated(x, position, **settings):
    return np.asarray(
        rope(jnp.asarray(x)[None, None, None], jnp.full((1, 1), position), **settings)
    )[0, 0, 0]


def test_one_pair_turns_by_its_position():
    for position in (0, 1, 5):
        c, s = math.cos(position), math.sin(position)
        np.testing.assert_allclose(rotated(np.float32([1, 0]), position), [c, s], atol=1e-6)
        np.testing.assert_allclose(rotated(np.float32([0, 1]), position), [-s, c], atol=1e-6)


def test_pairs_are_the_two_halves_and_slow_down():
    # H = 4: elements (0, 2) turn by 1 radian per position, (1, 3) by theta^(-1/2) = 0.01.
    out = rotated(np.float32([1, 1, 0, 0]), 3)
    np.testing.assert_allclose(
        out, [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)], atol=1e-6
    )


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotation_keeps_lengths_and_scores_see_only_distances(scaling):
    settings = {"scaling": scaling, **SCALINGS[scaling]}
    factor = rope_frequencies(16, **settings)[1]
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 16)).astype(np.float32)
    for position in (0, 7, 100):
        assert np.linalg.norm(rotated(q, position, **settings)) == pytest.approx(
            factor * np.linalg.norm(q), rel=1e-5
        )

    def score(i, j):
        return rotated(q, i, **settings) @ rotated(k, j, **settings)

    assert score(9, 4) == pytest.approx(score(105, 100), abs=2e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_each_token_turns_by_its_own_position():
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 0], [4, 9, 2]])
    out = np.asarray(rope(jnp.asarray(x), jnp.asarray(positions)))
    for b, t, n in np.ndindex(2, 3, 2):
        np.testing.assert_allclose(out[b, t, n], rotated(x[b, t, n], positions[b, t]), atol=1e-6)
    assert rope(jnp.asarray(x, jnp.bfloat16), jnp.asarray(positions)).dtype == jnp.bfloat16


def plain(head_dim, theta=10000.0):
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


def test_frequencies_without_scaling():
    frequencies, factor = rope_frequencies(8, theta=10000.0)
    np.testing.assert_allclose(frequencies, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert factor == 1.0


def test_linear_divides_positions():
    np.testing.assert_allclose(
        rope_frequencies(16, scaling="linear", factor=4.0)[0], np.array(plain(16)) / 4, rtol=1e-6
    )


def test_ntk_keeps_the_fastest_wave_and_stretches_the_slowest_by_the_factor():
    frequencies = rope_frequencies(16, scaling="ntk", factor=4.0)[0]
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(plain(16)[-1] / 4, rel=1e-5)
    np.testing.assert_allclose(np.diff(np.log(frequencies)), np.log(frequencies[1]), rtol=1e-5)


def test_llama3_by_wavelength():
    # Meta's code: wavelengths shorter than original/high are kept, longer than original/low
    # divided, between blended.
    frequencies = rope_frequencies(
        128, theta=500000.0, scaling="llama3", factor=8.0, original_length=8192
    )[0]
    kinds = set()
    for f, scaled in zip(plain(128, 500000.0), frequencies):
        wave = Rounded(1 / f) * 1.0
        f = Rounded(1.0) / wave
        wavelength = wave * (2 * math.pi)
        if wavelength.value < 8192 / 4.0:
            kinds.add("kept")
            expected = f
        elif wavelength.value > 8192 / 1.0:
            kinds.add("divided")
            expected = f / 8
        else:
            kinds.add("blended")
            smooth = (Rounded(8192) / wavelength - 1.0) / (4.0 - 1.0)
            expected = (Rounded(1.0) - smooth) * f / 8 + smooth * f
        assert_close(scaled, expected)
    assert kinds == {"kept", "divided", "blended"}


def test_yarn_by_rotations():
    # Peng et al. 2023, section 3.2: dimensions turning more than 32 times over the original context
    # are kept, less than once interpolated, a linear ramp over the dimension index between.
    H, theta, factor, length = 64, 10000.0, 4.0, 4096
    frequencies, attention_factor = rope_frequencies(
        H, scaling="yarn", factor=factor, original_length=length
    )
    assert attention_factor == pytest.approx(0.1 * math.log(4.0) + 1)

    def dimension(turns):
        return H * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = math.floor(dimension(32)), math.ceil(dimension(1))
    assert 0 < low < high < H // 2 - 1
    for i, f in enumerate(plain(H)):
        keep = 1 - min(max((i - low) / (high - low), 0), 1)
        assert frequencies[i] == pytest.approx(f / factor * (1 - keep) + f * keep, rel=1e-6), i
        turns = length * f / (2 * math.pi)
        if turns > 40:
            assert frequencies[i] == pytest.approx(f, rel=1e-6)
        if turns < 0.8:
            assert frequencies[i] == pytest.approx(f / factor, rel=1e-6)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "llama3", "yarn"])
def test_factor_one_changes_nothing(scaling):
    frequencies, factor = rope_frequencies(16, scaling=scaling, factor=1.0)
    np.testing.assert_allclose(frequencies, plain(16), rtol=1e-6)
    assert factor == 1.0


def test_each_token_may_turn_at_its_own_speed():
    at, speeds = np.array([[1, 3], [2, 5]]), np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    sin, cos = rope_angles(jnp.asarray(at), jnp.asarray(speeds), 0.5)
    np.testing.assert_allclose(sin, 0.5 * np.sin(at[..., None] * speeds), atol=1e-6)
    np.testing.assert_allclose(cos, 0.5 * np.cos(at[..., None] * speeds), atol=1e-6)
    # One for each row.
    sin, _ = rope_angles(jnp.asarray(at), jnp.asarray(speeds[:, :1]))
    np.testing.assert_allclose(sin, np.sin(at[..., None] * speeds[:, :1]), atol=1e-6)


def test_lengths_of_segments_in_any_order_of_tokens():
    segments = np.array(
        [[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 2, 2, 2, 2]]
    )
    positions = np.array([[0, 1, 2, 0, 0, 1, 0, 0], [*range(8)], [0, 1, 2, 0, 0, 1, 2, 3]])
    wanted = np.array([[3, 3, 3, 1, 2, 2, 1, 1], [8] * 8, [3, 3, 3, 1, 4, 4, 4, 4]])
    np.testing.assert_array_equal(
        segment_lengths(jnp.asarray(segments), jnp.asarray(positions)), wanted
    )
    order = np.random.default_rng(0).permutation(8)
    mixed = segment_lengths(jnp.asarray(segments[:, order]), jnp.asarray(positions[:, order]))
    np.testing.assert_array_equal(mixed, wanted[:, order])


def test_sinusoidal_written_out():
    out = np.asarray(sinusoidal(jnp.array([[0, 2]]), 4))
    expected = [[0, 0, 1, 1], [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]]
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    assert out.dtype == np.float32


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="even head_dim; got 5"):
        rope_frequencies(5)
    with pytest.raises(ValueError, match="even width; got 3"):
        sinusoidal(jnp.zeros((1, 1), jnp.int32), 3)
    with pytest.raises(
        ValueError,
        match="unknown rope scaling 'dynamic'; use none, linear, ntk, llama3, yarn or longrope",
    ):
        rope_frequencies(8, scaling="dynamic")
