"""What XLA's CPU backend needs to be fast. Each function has a plain form, which a test compares
with it (``tests/ops/test_cpu.py``); elsewhere than on a CPU the plain form runs.

| function | plain form | measured (SmolLM2-135M, two cores; benchmarks/results) |
| --- | --- | --- |
| ``project`` | ``dot_general`` | PROJECT |
| ``output_first_product`` | ``einsum("...i,oi->...o")`` | 0.87 of the time of a step of 8 rows |
| ``materialize`` | ``make()`` | 0.92 of a step's time, together with ``ops.cache``'s writes |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.platform import platform

T = TypeVar("T")

# Rows of a product up to which laying out the other operand is much of the work.
_FEW_ROWS = 32


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, num_inputs: int) -> Array:
    """The product of x [..., inputs] and kernel [inputs, outputs] over ``num_inputs`` input axes.

    The gradients are those of ``dot_general``, written so that the kernel's comes out in its own
    layout: JAX's rule makes it transposed, for which XLA's CPU backend transposes the wide
    activation gradient, and recomputes what produced it. Other backends are indifferent to it.
    """
    contracted = tuple(range(x.ndim - num_inputs, x.ndim)), tuple(range(num_inputs))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())))


def _project_forward(x: Array, kernel: Array, num_inputs: int) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel, num_inputs), (x, kernel)


def _project_backward(num_inputs: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - num_inputs))
    outputs = tuple(range(len(rows), g.ndim))
    over_outputs = outputs, tuple(range(num_inputs, kernel.ndim))
    d_x = jax.lax.dot_general(g, kernel, (over_outputs, ((), ())))
    d_kernel = jax.lax.dot_general(x, g, ((rows, rows), ((), ())))
    return d_x, d_kernel


project.defvjp(_project_forward, _project_backward)


def output_first_product(x: Array, weight: Array, num_inputs: int) -> Array:
    """The product of x [..., inputs] and weight [outputs, inputs] over ``num_inputs`` input axes.

    Both are multiplied as matrices, since XLA's CPU backend would transpose a weight of more axes.
    It also lays its right operand out anew in every call: with few rows, x takes that place.
    """
    split = weight.ndim - num_inputs
    outputs = weight.shape[:split]
    width = math.prod(weight.shape[split:])
    rows = x.shape[: x.ndim - num_inputs]
    flat = x.reshape(*rows, width)
    matrix = weight.reshape(-1, width)
    if platform() != "cpu" or math.prod(rows) > _FEW_ROWS:
        return jnp.einsum("...i,oi->...o", flat, matrix).reshape(*rows, *outputs)
    y = jnp.einsum("oi,ri->or", matrix, flat.reshape(-1, width))
    # Seen together with the product, the transposition would turn its operands round again.
    return jax.lax.optimization_barrier(y).T.reshape(*rows, *outputs)


def materialize(make: Callable[[], T], always_true: Array) -> T:
    """The result of ``make()``, stored in arrays of its own.

    XLA's CPU backend would otherwise recompute what it can compute element by element in each loop
    that reads it: in every layer, and for every head. It moves nothing out of a branch.

    Args:
        make: computes a tree of arrays.
        always_true: bool [], True at run time, which the compiler must not know.
    """
    if platform() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return make()

    def never() -> T:
        return jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), jax.eval_shape(make))

    return jax.lax.cond(always_true, make, never)
