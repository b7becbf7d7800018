"""Norms, soft-cap, dropout and the gated MLP against numpy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import dropout, gated_mlp, layer_norm, rms_norm, soft_cap
from llm_jax.ops.nn import ACTIVATIONS, gated

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, size=(2, 3, 16))
SCALE, BIAS = RNG.normal(size=16), RNG.normal(size=16)


def f32(a):
    return jnp.asarray(a, jnp.float32)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("unit_offset", [False, True])
def test_rms_norm(eps, unit_offset):
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + eps) * (SCALE + unit_offset)
    np.testing.assert_allclose(
        rms_norm(f32(X), f32(SCALE), eps=eps, unit_offset=unit_offset),
        expected,
        rtol=2e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("bias", [None, BIAS])
def test_layer_norm(bias):
    centred = X - X.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * SCALE + (
        0 if bias is None else bias
    )
    out = layer_norm(f32(X), f32(SCALE), None if bias is None else f32(bias), eps=1e-3)
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=2e-6)


def test_layer_norm_of_a_large_mean_keeps_its_variance():
    # E[x²] - E[x]² in float32 would cancel to nothing here.
    x = f32([[4096.0, 4097.0, 4098.0, 4099.0]])
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(1.25)
    np.testing.assert_allclose(layer_norm(x, jnp.ones(4), eps=0.0)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_norms_of_bfloat16_are_computed_in_float32(norm):
    x = jnp.asarray(X, jnp.bfloat16)
    exact = norm(x.astype(jnp.float32), f32(SCALE))
    out = norm(x, f32(SCALE))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_soft_cap():
    x = f32([-1e6, -1.0, 0.0, 1.0, 1e6])
    np.testing.assert_allclose(
        soft_cap(x, 30.0), [-30, -30 * math.tanh(1 / 30), 0, 30 * math.tanh(1 / 30), 30], rtol=1e-6
    )
    assert soft_cap(x, 0.0) is x


def test_dropout_statistics():
    x = jnp.full((400, 500), 3.0)
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(3.0) / np.float32(0.7)}
    # 200,000 draws: the share dropped has a standard deviation of 0.001, in rows of 500 of 0.02.
    assert abs((y == 0).mean() - 0.3) < 0.005
    assert np.abs((y == 0).mean(1) - 0.3).max() < 0.1
    assert abs(y.mean() - 3.0) < 0.03


def test_dropout_is_a_function_of_its_key_and_off_without_one():
    x = jnp.ones((8, 8))
    again = [dropout(x, 0.5, jax.random.key(k)) for k in (1, 1, 2)]
    assert (again[0] == again[1]).all() and (again[0] != again[2]).any()
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_activations_at_one():
    phi = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    tanh = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1 + 0.044715)))
    expected = {
        "silu": 1 / (1 + math.exp(-1)),
        "gelu": phi,
        "gelu_tanh": tanh,
        "relu": 1.0,
        "quick_gelu": 1 / (1 + math.exp(-1.702)),
    }
    assert set(ACTIVATIONS) == set(expected)
    for name, value in expected.items():
        assert float(ACTIVATIONS[name](jnp.float32(1.0))) == pytest.approx(value, rel=1e-6), name
        assert float(ACTIVATIONS[name](jnp.float32(0.0))) == 0.0


def test_gated_mlp():
    gate, up, down = RNG.normal(size=(16, 5)), RNG.normal(size=(16, 5)), RNG.normal(size=(5, 16))
    g = X @ gate
    expected = (g / (1 + np.exp(-g)) * (X @ up)) @ down
    np.testing.assert_allclose(
        gated_mlp(f32(X), f32(gate), f32(up), f32(down)), expected, rtol=1e-4, atol=1e-3
    )
    with pytest.raises(ValueError, match="unknown activation 'swish'; there are gelu, .*silu"):
        gated_mlp(f32(X), f32(gate), f32(up), f32(down), activation="swish")


def test_the_clamped_gate_by_hand():
    gate, up = jnp.array([-9.0, 0.5, 9.0]), jnp.array([-9.0, 0.5, 9.0])
    expected = [-9 * (-2 + 1), 0.5 * 1.5, 2 * (2 + 1)]  # the gate has no lower bound
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACTIVATIONS, "identity", lambda x: x)
        np.testing.assert_allclose(
            gated(gate, up, activation="identity", clamp=2.0, up_offset=1.0), expected
        )
    np.testing.assert_array_equal(gated(gate, up, activation="relu"), jax.nn.relu(gate) * up)
