"""Counting the matrix products of a traced function: what will be computed, recomputation
and all.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from llm_jax.ops.moe import EVEN_ROWS

_EVEN_ROWS = re.compile(EVEN_ROWS.format(r"(\d+)"))


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a (closed) jaxpr, on all devices together: 2 per
    multiplication, loops as often as they run.

    A while loop counts once, a conditional as its dearest branch, a splash attention kernel
    (causal) the blocks that its mask leaves, experts the rows that they have when evenly used.
    Raises NotImplementedError for kernels that it cannot look into.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(map(_equation, jaxpr.eqns), 0.0)


def _equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "pallas_call" and str(params["name"]).startswith("splash"):
        return _splash(params)
    if name == "ragged_dot_general" and (
        even := _EVEN_ROWS.search(str(eqn.source_info.name_stack))
    ):
        # Rows are ragged whether they are summed over (a kernel's gradient) or not: with the widths
        # of a kernel they make the work.
        kernel = max((v.aval for v in (*eqn.invars, *eqn.outvars)), key=lambda a: a.ndim)
        return 2.0 * int(even[1]) * math.prod(kernel.shape[1:])
    if name in ("conv_general_dilated", "ragged_dot_general", "pallas_call"):
        raise NotImplementedError(f"matmul_flops cannot count {name}")
    inner = [matmul_flops(j) for j in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(j)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # what it calls is the part of one device
        return params["mesh"].size * sum(inner)
    return max(inner, default=0.0) if name == "cond" else sum(inner)


def _splash(params: Any) -> float:
    """One grid step works on a block of queries and a block of keys of one head. A grid shrunk to
    the blocks of a window is all work; of a whole one the causal mask leaves the blocks on and
    below the diagonal.
    """
    grid = params["grid_mapping"].grid
    blocks = (grid[-3], grid[-1]) if "dkv" in params["name"] else grid[-2:]
    share = (blocks[0] + 1) / (2 * blocks[0]) if blocks[0] == blocks[1] else 1.0
    return math.prod(grid) * share * matmul_flops(params["jaxpr"])


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")
