"""Linear functions whose transpose is written by hand.

A gradient goes through the transpose of each linear function. Where JAX makes a poor one, a better
can be given here, and every other way of differentiation stays: forward mode, products with the
Hessian, ``vmap``, ``shard_map``, ``scan``. Of JAX's own means ``custom_vjp`` has no forward mode,
and ``custom_derivatives.linear_call`` no ``vmap`` and no derivative by its residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from llm_jax.ops.meshes import vary_together

_linear_p = Primitive("linear_with_transpose")


def with_transpose(
    function: Callable[..., Array],
    transpose: Callable[..., Array],
    residuals: Sequence[Array],
    x: Array,
) -> Array:
    """``function(*residuals, x)``, whose gradient by x is ``transpose(*residuals, gradient)``.

    Args:
        function: linear in its last argument.
        transpose: its transpose. A second derivative differentiates it as it stands.
        residuals: what else the function reads. It may be differentiated by them.
        x: the argument that ``transpose`` is for.
    """
    return _linear_p.bind(*vary_together((*residuals, x)), function=function, transpose=transpose)


def _evaluate(*args: Array, function: Callable, transpose: Callable) -> Array:
    return function(*args)


def _result(*types: Any, function: Callable, transpose: Callable) -> Any:
    """The type of the result, given those of the arguments."""
    return jax.make_jaxpr(function)(*types).out_avals[0]


def _forward_mode(
    primals: Sequence[Array], tangents: Sequence[Any], *, function: Callable, transpose: Callable
) -> tuple[Array, Any]:
    *residuals, x = primals
    *of_residuals, of_x = tangents
    out = with_transpose(function, transpose, residuals, x)
    moved = [i for i, tangent in enumerate(of_residuals) if not isinstance(tangent, ad.Zero)]
    terms = []
    if not isinstance(of_x, ad.Zero):
        terms.append(with_transpose(function, transpose, residuals, of_x))
    if moved:

        def of_moved(*values: Array) -> Array:
            changed = list(residuals)
            for i, value in zip(moved, values):
                changed[i] = value
            return function(*changed, x)

        primal = [residuals[i] for i in moved]
        terms.append(jax.jvp(of_moved, primal, [of_residuals[i] for i in moved])[1])
    return out, sum(terms[1:], terms[0])


def _reverse_mode(
    gradient: Any, *args: Any, function: Callable, transpose: Callable
) -> list[Array | None]:
    *residuals, _ = args
    none: list[Array | None] = [None] * len(residuals)
    if isinstance(gradient, ad.Zero):
        return [*none, None]
    return [*none, transpose(*residuals, gradient)]


def _batched(
    axis: Any,
    args: Sequence[Array],
    dims: Sequence[int | None],
    *,
    function: Callable,
    transpose: Callable,
) -> tuple[Array, int]:
    in_axes = [None if dim is None else 0 for dim in dims]
    moved = [a if dim is None else jnp.moveaxis(a, dim, 0) for a, dim in zip(args, dims)]
    if in_axes[-1] is None:
        in_axes[-1] = 0
        moved[-1] = jnp.broadcast_to(moved[-1][None], (axis.size, *moved[-1].shape))

    def of_all(f: Callable[..., Array]) -> Callable[..., Array]:
        return jax.vmap(f, tuple(in_axes), axis_name=axis.name, spmd_axis_name=axis.spmd_name)

    *residuals, x = moved
    return with_transpose(of_all(function), of_all(transpose), residuals, x), 0


_linear_p.def_impl(_evaluate)
_linear_p.def_abstract_eval(_result)
ad.primitive_jvps[_linear_p] = _forward_mode
ad.primitive_transposes[_linear_p] = _reverse_mode
batching.fancy_primitive_batchers[_linear_p] = _batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=False))
