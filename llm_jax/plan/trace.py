"""Counts the FLOPs of a traced function's matrix products, with those that are recomputed."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.interpreters import partial_eval

from llm_jax.ops.moe import EVEN_ROWS

_EVEN_ROWS = re.compile(EVEN_ROWS.format(r"(\d+)"))


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products of a jaxpr, closed or not, on all devices together.

    A multiplication counts 2, and a scan as often as it runs. A while loop counts once, a
    conditional as its most expensive branch, a causal splash attention kernel the blocks that its
    mask leaves, and experts the rows that they have when used evenly.

    Raises:
        NotImplementedError: the jaxpr has a kernel whose products cannot be counted.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(map(_equation, jaxpr.eqns), 0.0)


def used(jaxpr: Any) -> Any:
    """A closed jaxpr without the computations whose results nothing uses.

    The compiler drops them. A gradient by some of the parameters has such computations where a
    function with a gradient of its own (``jax.custom_vjp``) gives it for all of its arguments.
    """
    results = [True] * len(jaxpr.jaxpr.outvars)
    inner, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, results, instantiate=True)
    return jaxpr.replace(jaxpr=inner)


def _equation(eqn: Any) -> float:
    name = eqn.primitive.name
    params = eqn.params
    if name == "dot_general":
        return _dot_general(eqn)
    if name == "pallas_call" and str(params["name"]).startswith("splash"):
        return _splash(params)
    if name == "pallas_call" and str(params["name"]).startswith("ragged_paged_attention"):
        return _ragged(eqn)
    even = None
    if name == "ragged_dot_general":
        even = _EVEN_ROWS.search(str(eqn.source_info.name_stack))
    if even:
        # The rows are ragged whether they are contracted (a kernel's gradient) or not: the FLOPs
        # are those of even rows times the widths of the kernel.
        kernel = max((v.aval for v in (*eqn.invars, *eqn.outvars)), key=lambda a: a.ndim)
        return 2.0 * int(even[1]) * math.prod(kernel.shape[1:])
    if name in ("conv_general_dilated", "ragged_dot_general", "pallas_call"):
        raise NotImplementedError(f"matmul_flops cannot count {name}")
    inner = [matmul_flops(j) for j in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(j)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        # The inner jaxpr is the part of one device.
        return params["mesh"].size * sum(inner)
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner)


def _dot_general(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _splash(params: Any) -> float:
    """FLOPs of a splash attention kernel.

    A grid step works on a block of queries and a block of keys of one head. In a grid that was
    shrunk to the blocks of a window every step does work; in a whole one, the causal mask leaves
    the blocks on and below the diagonal.
    """
    grid = params["grid_mapping"].grid
    blocks = (grid[-3], grid[-1]) if "dkv" in params["name"] else grid[-2:]
    share = (blocks[0] + 1) / (2 * blocks[0]) if blocks[0] == blocks[1] else 1.0
    return math.prod(grid) * share * matmul_flops(params["jaxpr"])


def _ragged(eqn: Any) -> float:
    """FLOPs of jax's ragged paged attention, of rows whose pages are full: each query by each key
    and value.
    """
    shapes = [v.aval.shape for v in eqn.invars]
    queries = next(shape for shape in shapes if len(shape) == 3)
    page = next(shape for shape in shapes if len(shape) == 4)[1]
    entries = next(shape for shape in shapes if len(shape) == 2)[1]
    return 4.0 * math.prod(queries) * entries * page


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")
