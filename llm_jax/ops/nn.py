"""Norms, activations, dropout and the soft-cap: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
}


def rms_norm(x: Array, scale: Array, *, eps: float = 1e-5, unit_offset: bool = False) -> Array:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019), computed in float32.

    x: [..., D], scale: [D]. ``unit_offset`` multiplies by ``1 + scale`` (Gemma). Returns x's shape
    and dtype.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    scale = scale.astype(jnp.float32)
    return _affine(y, 1.0 + scale if unit_offset else scale).astype(x.dtype)


def layer_norm(x: Array, scale: Array, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Layer norm over the last axis (Ba et al. 2016), computed in float32.

    x: [..., D], scale: [D], bias: [D] or None. Returns x's shape and dtype.
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    y = _affine(y, scale.astype(jnp.float32))
    if bias is not None:
        y = y + jnp.expand_dims(bias.astype(jnp.float32), range(y.ndim - 1))
    return y.astype(x.dtype)


def _affine(y: Array, scale: Array) -> Array:
    # Explicit rank, so that callers may raise on implicit rank promotion.
    return y * jnp.expand_dims(scale, range(y.ndim - 1))


def soft_cap(x: Array, cap: float) -> Array:
    """``cap · tanh(x / cap)`` (Gemma 2, section 2); ``cap`` 0 returns x."""
    return x if cap == 0 else cap * jnp.tanh(x / cap)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share ``rate`` of x and divides the rest by ``1 - rate``; ``key`` None returns x
    unchanged.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def gated(
    gate: Array, up: Array, *, activation: str, clamp: float = 0.0, up_offset: float = 0.0
) -> Array:
    """``act(gate) * (up + up_offset)``, with gate and up clamped before (gpt-oss).

    Args:
        gate: [..., F].
        up: [..., F].
        activation: a key of ``ACTIVATIONS``.
        clamp: gate is at most this, and up from -clamp to clamp; 0 is off.
        up_offset: added to up.
    """
    if clamp:
        gate = jnp.minimum(gate, clamp)
        up = jnp.clip(up, -clamp, clamp)
    if up_offset:
        return ACTIVATIONS[activation](gate) * (up + up_offset)
    return ACTIVATIONS[activation](gate) * up


def gated_mlp(x: Array, gate: Array, up: Array, down: Array, *, activation: str = "silu") -> Array:
    """``(act(x·gate) * (x·up))·down`` (Shazeer 2020: SwiGLU with silu, GeGLU with gelu).

    x: [..., D], gate and up: [D, F], down: [F, D]. Raises KeyError for an unknown activation.
    """
    return (ACTIVATIONS[activation](x @ gate) * (x @ up)) @ down
