"""Products of rows with the kernels of groups: rows of one group follow one another.

JAX's ``ragged_dot`` has no gradient of its kernels' gradient, and goes through ``vmap`` only where
each of its arguments has the new axis. Here are all derivatives, and any ``vmap``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.lax import RaggedDotDimensionNumbers

from llm_jax.ops.meshes import vary_together
from llm_jax.ops.transposes import with_transpose

# What a product makes of the other two: outputs [m, F] of inputs [m, D] and kernels [E, D, F],
# inputs of outputs and kernels, or kernels of inputs and outputs, summed over the rows of a group.
# Each is the transpose of the others.
_Made = Literal["outputs", "inputs", "kernels"]


def _dimensions(first: int, second: int, groups: tuple[int, ...]) -> RaggedDotDimensionNumbers:
    """Of a product over one axis of each operand. groups: the axis of groups of the second."""
    contracted = ((first,), (second,))
    return RaggedDotDimensionNumbers((contracted, ((), ())), (0,), groups)


_DIMENSIONS: dict[_Made, RaggedDotDimensionNumbers] = {
    "outputs": _dimensions(1, 1, (0,)),
    "inputs": _dimensions(1, 2, (0,)),
    "kernels": _dimensions(0, 0, ()),
}
_BY_FIRST: dict[_Made, _Made] = {"outputs": "inputs", "inputs": "outputs", "kernels": "inputs"}


def grouped_product(rows: Array, kernels: Array, counts: Array, *, scope: str = "grouped") -> Array:
    """The product of each row with the kernel of its group, ``jax.lax.ragged_dot``.

    Args:
        rows: [m, D], sorted by group.
        kernels: [E, D, F].
        counts: int [E], rows of each group. Rows beyond them have no group.
        scope: name of the products in a profile, and of those of their gradients.

    Returns:
        [m, F], undefined for rows without a group.
    """
    return _product(*vary_together((rows, kernels, counts)), "outputs", scope)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _product(first: Array, second: Array, counts: Array, made: _Made, scope: str) -> Array:
    def product(first: Array, second: Array, counts: Array) -> Array:
        with jax.named_scope(scope):
            return jax.lax.ragged_dot_general(first, second, counts, _DIMENSIONS[made])

    alone = jax.custom_batching.custom_vmap(product)

    @alone.def_vmap
    def of_many(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
        whole = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(args, batched)]
        # A second axis goes through a loop.
        return jax.custom_batching.sequential_vmap(jax.vmap(product))(*whole), True

    return alone(first, second, counts)


def _forward_mode(
    made: _Made, scope: str, primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Any]:
    first, second, counts = primals
    d_first, d_second, _ = tangents
    out = _product(first, second, counts, made, scope)
    terms = []
    if not isinstance(d_first, SymbolicZero):
        by_first = partial(_of_first, made=made, scope=scope)
        to_first = partial(_to_first, made=made, scope=scope)
        terms.append(with_transpose(by_first, to_first, (second, counts), d_first))
    if not isinstance(d_second, SymbolicZero):
        by_second = partial(_of_second, made=made, scope=scope)
        to_second = partial(_to_second, made=made, scope=scope)
        terms.append(with_transpose(by_second, to_second, (first, counts), d_second))
    return out, sum(terms[1:], terms[0])


_product.defjvp(_forward_mode, symbolic_zeros=True)


def _of_first(second: Array, counts: Array, first: Array, *, made: _Made, scope: str) -> Array:
    return _product(first, second, counts, made, scope)


def _of_second(first: Array, counts: Array, second: Array, *, made: _Made, scope: str) -> Array:
    return _product(first, second, counts, made, scope)


def _to_first(second: Array, counts: Array, g: Array, *, made: _Made, scope: str) -> Array:
    """The gradient of the first operand of a product, given that of its result."""
    operands = (second, g) if made == "kernels" else (g, second)
    return _product(*operands, counts, _BY_FIRST[made], scope)


def _to_second(first: Array, counts: Array, g: Array, *, made: _Made, scope: str) -> Array:
    """The gradient of the second operand of a product, given that of its result."""
    if made == "kernels":
        return _product(first, g, counts, "outputs", scope)
    operands = (g, first) if made == "inputs" else (first, g)
    return _product(*operands, counts, "kernels", scope)
