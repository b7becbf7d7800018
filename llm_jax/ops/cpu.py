"""What XLA's CPU backend needs to be fast. Each function has a plain form, which a test compares
with it (``tests/ops/test_cpu.py``); elsewhere than on a CPU the plain form runs.

| function | plain form | measured (SmolLM2-135M, two cores; benchmarks/results) |
| --- | --- | --- |
| ``project`` | ``dot_general`` | its gradient: no transposition of activations |
| ``output_first_product`` | ``einsum("...i,oi->...o")`` | 0.87 of the time of a step of 8 rows |
| ``scores``, ``weighted_values`` | ``einsum`` | these three together: 0.92 of a step's time |
| ``write_row_slice`` | ``dynamic_update_slice`` | at one row and at eight |
| ``materialize`` | ``make()`` | |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from llm_jax.ops.meshes import vary_together
from llm_jax.ops.platform import platform
from llm_jax.ops.transposes import with_transpose

T = TypeVar("T")

# Rows of a product up to which laying out the other operand is much of the work.
_FEW_ROWS = 32
# Below this many query rows a key head, a product with a cache is one of a decoding step. It is
# then summed in parts: values over _SLOTS positions, scores over _LANES dimensions.
_FEW_QUERIES = 8
_SLOTS = 16
_LANES = 8


def project(x: Array, kernel: Array, num_inputs: int) -> Array:
    """The product of x [..., inputs] and kernel [inputs, outputs] over ``num_inputs`` input axes.

    The gradients are those of ``dot_general``, written so that the kernel's comes out in its own
    layout: JAX's rule makes it transposed, for which XLA's CPU backend transposes the wide
    activation gradient, and recomputes what produced it. Other backends are indifferent to it.
    """
    return _project(*vary_together((x, kernel)), num_inputs)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _project(x: Array, kernel: Array, num_inputs: int) -> Array:
    contracted = tuple(range(x.ndim - num_inputs, x.ndim)), tuple(range(num_inputs))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())))


def _project_forward_mode(
    num_inputs: int, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Any]:
    x, kernel = primals
    d_x, d_kernel = tangents
    out = _project(x, kernel, num_inputs)
    terms = []
    if not isinstance(d_x, SymbolicZero):
        terms.append(_project(d_x, kernel, num_inputs))
    if not isinstance(d_kernel, SymbolicZero):
        terms.append(project_of_changed(x, kernel, d_kernel, num_inputs))
    return out, sum(terms[1:], terms[0])


def project_of_changed(x: Array, kernel: Array, d_kernel: Array, num_inputs: int) -> Array:
    """How ``project(x, kernel, num_inputs)`` changes where the kernel changes by ``d_kernel``."""
    product = partial(_project, num_inputs=num_inputs)
    gradient = partial(_kernel_gradient, num_inputs=num_inputs, like=jax.typeof(kernel))
    return with_transpose(product, gradient, (x,), d_kernel)


def _kernel_gradient(x: Array, g: Array, *, num_inputs: int, like: Any) -> Array:
    """The gradient of a kernel of type ``like``, given that of the product."""
    rows = tuple(range(x.ndim - num_inputs))
    placed = None if like.sharding.mesh.empty else like.sharding
    return jax.lax.dot_general(x, g, ((rows, rows), ((), ())), out_sharding=placed)


_project.defjvp(_project_forward_mode, symbolic_zeros=True)


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


def scores(q: Array, k: Array) -> Array:
    """The product of q [B, K, Q, H] and k [B, K, S, H] over H: float32 [B, K, Q, S]."""
    if not _is_decoding_step(q) or q.shape[3] % _LANES:
        return jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    lanes = (-1, _LANES)
    return _summed(q.reshape(*q.shape[:3], 1, *lanes), k.reshape(*k.shape[:3], *lanes), then=3)


def weighted_values(weights: Array, v: Array, dtype: Any) -> Array:
    """The product of weights [B, K, Q, S] and v [B, K, S, H] over S: [B, K, Q, H] in ``dtype``."""
    if not _is_decoding_step(weights) or v.shape[2] % _SLOTS:
        return jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=dtype)
    blocks = (-1, _SLOTS)
    return _summed(
        weights.reshape(*weights.shape[:3], *blocks, 1),
        v.reshape(*v.shape[:2], *blocks, v.shape[3]),
        then=2,
    )


def _is_decoding_step(rows: Array) -> bool:
    """Whether a product of rows [B, K, Q, ...] with a cache is a decoding step's on a CPU.

    Such a step has few query rows a key head, but more than one.
    """
    few = 1 < rows.shape[2] < _FEW_QUERIES
    return platform() == "cpu" and few and rows.dtype == jnp.float32


def _summed(rows: Array, cache: Array, then: int) -> Array:
    """The products of a cache [B, K, ...] with each of rows [B, K, Q, ...], summed over two axes.

    XLA's CPU backend runs a product of so few rows on one core. These sums it splits over cores,
    and reads the cache once for all rows.

    Args:
        rows: the queries or weights.
        cache: the keys or values.
        then: axis of the second sum, after axis 3 was summed.

    Returns:
        [B, K, Q, ...].
    """
    terms = [cache * rows[:, :, row] for row in range(rows.shape[2])]
    return jnp.stack(_sums(_sums(terms, 3), then), axis=2)


def _sums(terms: Sequence[Array], axis: int) -> Sequence[Array]:
    """The sum of each term over ``axis``, in one pass."""

    def add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    return jax.lax.reduce(terms, [np.float32(0)] * len(terms), add, (axis,))


def write_row_slice(slots: Array, new: Array, start: Array, axis: int) -> Array:
    """``slots`` [1, …, S, …] of one row with ``new`` [1, …, T, …] written at ``start`` [] of
    ``axis``.

    XLA's CPU backend would put a slice's update into what reads the slots, too, and copy all of
    them in every step. It does not with a scatter, which it takes for such an update unless there
    are two.
    """
    if platform() != "cpu":
        return jax.lax.dynamic_update_slice_in_dim(slots, new, start, axis)
    twice = jax.lax.ScatterDimensionNumbers(tuple(range(1, slots.ndim + 1)), (), (axis,))
    starts = jnp.stack([start, start])[:, None]
    updates = jnp.stack([new, new])
    return jax.lax.scatter(slots, starts, updates, twice, mode=jax.lax.GatherScatterMode.CLIP)
