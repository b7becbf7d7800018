"""Norms, activations, dropout and the soft-cap: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.precision import widened


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
}


# The name of an activation, or a function of its own.
Activation = str | Callable[[Array], Array]


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The function of that name in ``ACTIVATIONS``, or the given function.

    Raises:
        ValueError: there is no activation of that name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}; there are {', '.join(sorted(ACTIVATIONS))}, or"
            " give a function"
        )
    return ACTIVATIONS[activation]


def rms_norm(
    x: Array, scale: Array | None = None, *, eps: float = 1e-5, unit_offset: bool = False
) -> Array:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019).

    Args:
        x: [..., D].
        scale: [D], or None for none.
        eps: added to the mean square.
        unit_offset: multiplies by ``1 + scale`` (Gemma).

    Returns:
        x's shape and dtype, computed in float32, or in float64 for x of float64.

    Raises:
        ValueError: scale is not [D].
    """
    y = widened(x)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None:
        scale = _of_last_axis("scale", scale, y)
        y = y * (1.0 + scale if unit_offset else scale)
    return y.astype(x.dtype)


def layer_norm(
    x: Array, scale: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> Array:
    """Layer norm over the last axis (Ba et al. 2016).

    Args:
        x: [..., D].
        scale: [D], or None for none.
        bias: [D], or None for none.
        eps: added to the variance.

    Returns:
        x's shape and dtype, computed in float32, or in float64 for x of float64.

    Raises:
        ValueError: scale or bias is not [D].
    """
    y = widened(x)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * _of_last_axis("scale", scale, y)
    if bias is not None:
        y = y + _of_last_axis("bias", bias, y)
    return y.astype(x.dtype)


def _of_last_axis(name: str, vector: Array, y: Array) -> Array:
    """A vector [D] in the dtype and with the rank of y [..., D]."""
    if vector.shape != y.shape[-1:]:
        raise ValueError(
            f"norm {name} has shape {vector.shape}; it must be {y.shape[-1:]}, the last axis of x"
            f" {y.shape}"
        )
    # Explicit rank, so that callers may raise on implicit rank promotion.
    return jnp.expand_dims(vector.astype(y.dtype), range(y.ndim - 1))


def soft_cap(x: Array, cap: float) -> Array:
    """``cap · tanh(x / cap)`` (Gemma 2, section 2); ``cap`` 0 returns x."""
    return x if cap == 0 else cap * jnp.tanh(x / cap)


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError if a rate of dropout is not from 0 to below 1."""
    if isinstance(rate, int | float) and not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate}; it must be from 0 to below 1")


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share ``rate`` of x and divides the rest by ``1 - rate``; ``key`` None returns x
    unchanged.

    Raises:
        ValueError: rate is not from 0 to below 1.
    """
    check_rate("dropout rate", rate)
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def gated(
    gate: Array, up: Array, *, activation: Activation, clamp: float = 0.0, up_offset: float = 0.0
) -> Array:
    """``act(gate) * (up + up_offset)``, with gate and up clamped before (gpt-oss).

    Args:
        gate: [..., F].
        up: [..., F].
        activation: a key of ``ACTIVATIONS``, or a function.
        clamp: gate is at most this, and up from -clamp to clamp; 0 is off.
        up_offset: added to up.
    """
    if clamp:
        gate = jnp.minimum(gate, clamp)
        up = jnp.clip(up, -clamp, clamp)
    if up_offset:
        up = up + up_offset
    return activation_function(activation)(gate) * up


def gated_mlp(
    x: Array, gate: Array, up: Array, down: Array, *, activation: Activation = "silu"
) -> Array:
    """``(act(x·gate) * (x·up))·down`` (Shazeer 2020: SwiGLU with silu, GeGLU with gelu).

    Args:
        x: [..., D].
        gate: [D, F].
        up: [D, F].
        down: [F, D].
        activation: a key of ``ACTIVATIONS``, or a function.

    Raises:
        ValueError: shapes disagree, or there is no activation of that name.
    """
    D = x.shape[-1:]
    if gate.shape != up.shape or gate.shape[:1] != D or down.shape != gate.shape[::-1]:
        raise ValueError(
            f"gated_mlp shapes disagree: x {x.shape}, gate {gate.shape}, up {up.shape}, down"
            f" {down.shape}; they must be [..., D], [D, F], [D, F] and [F, D]"
        )
    return (activation_function(activation)(x @ gate) * (x @ up)) @ down
