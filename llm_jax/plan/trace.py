"""Counting the matrix products of a traced function: what will be computed, recomputation and all."""

from __future__ import annotations

import math
from typing import Any

import jax


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a (closed) jaxpr, on all devices together: 2 per multiplication, loops as often as they run.

    A while loop counts once, a conditional as its dearest branch. Raises NotImplementedError for kernels that it cannot look into.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(map(_equation, jaxpr.eqns), 0.0)


def _equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name in ("conv_general_dilated", "ragged_dot", "ragged_dot_general", "pallas_call"):
        raise NotImplementedError(f"matmul_flops cannot count {name}")
    inner = [matmul_flops(j) for j in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(j)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0.0) if name == "cond" else sum(inner)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")
