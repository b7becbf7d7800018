"""Norms, activations, dropout and the soft-cap: arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}


T = TypeVar("T")

# Rows of a product up to which laying out the other operand is much of the work on a CPU.
_FEW = 32


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh in use, which need not be there (``llm_jax.plan``), else of
    the devices that are.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (
        jax.default_backend()
        if device is None
        else device.platform.replace("cuda", "gpu").replace("rocm", "gpu")
    )


def materialize(make: Callable[[], T], sure: Array) -> T:
    """What ``make`` computes, as arrays of their own. sure: a bool [] that is True, but not for the
    compiler to know.

    XLA's CPU backend would compute anew, in each loop that reads them, whatever it can compute by
    element: in every layer, and for every head. It does not move what is in a branch. Elsewhere,
    and on a mesh, this is ``make()``.
    """
    if platform() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return make()

    def never() -> T:
        return jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), jax.eval_shape(make))

    return jax.lax.cond(sure, make, never)


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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, n: int) -> Array:
    """x [..., inputs] times kernel [inputs, outputs] over ``n`` input axes.

    The gradients are those of ``dot_general``, written so that the kernel's comes out in its own
    layout: JAX's rule makes it transposed, for which XLA's CPU backend transposes the wide
    activation gradient, recomputing what produced it.
    """
    return jax.lax.dot_general(
        x, kernel, ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ()))
    )


def _project_forward(x: Array, kernel: Array, n: int) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel, n), (x, kernel)


def _project_backward(n: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, outputs = tuple(range(x.ndim - n)), tuple(range(x.ndim - n, g.ndim))
    d_x = jax.lax.dot_general(g, kernel, ((outputs, tuple(range(n, kernel.ndim))), ((), ())))
    return d_x, jax.lax.dot_general(x, g, ((rows, rows), ((), ())))


project.defvjp(_project_forward, _project_backward)


def linear(x: Array, weight: Array, n: int = 1) -> Array:
    """x [..., inputs] times weight [outputs, inputs] over ``n`` input axes: ``project`` of a kernel
    whose outputs come first.
    """
    outputs, inputs = weight.shape[: weight.ndim - n], weight.shape[weight.ndim - n :]
    rows = x.shape[: x.ndim - n]
    # As matrices: XLA's CPU backend would turn a weight of more axes round to make one of it.
    flat, matrix = x.reshape(*rows, math.prod(inputs)), weight.reshape(-1, math.prod(inputs))
    if platform() != "cpu" or math.prod(rows) > _FEW:
        return jnp.einsum("...i,oi->...o", flat, matrix).reshape(*rows, *outputs)
    # It also lays its right operand out anew in every call: here that is x.
    y = jnp.einsum("oi,ri->or", matrix, flat.reshape(-1, flat.shape[-1]))
    # Seen together with the product, the transposition would turn its operands round again.
    return jax.lax.optimization_barrier(y).T.reshape(*rows, *outputs)


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
    """``act(gate) * (up + up_offset)``, gate at most ``clamp`` and up within ±``clamp`` before that
    (gpt-oss); ``clamp`` 0 is off.
    """
    if clamp:
        gate, up = jnp.minimum(gate, clamp), jnp.clip(up, -clamp, clamp)
    return ACTIVATIONS[activation](gate) * (up + up_offset if up_offset else up)


def gated_mlp(x: Array, gate: Array, up: Array, down: Array, *, activation: str = "silu") -> Array:
    """``(act(x·gate) * (x·up))·down`` (Shazeer 2020: SwiGLU with silu, GeGLU with gelu).

    x: [..., D], gate and up: [D, F], down: [F, D]. Raises KeyError for an unknown activation.
    """
    return (ACTIVATIONS[activation](x @ gate) * (x @ up)) @ down
