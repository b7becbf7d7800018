"""Parameters in the type that products are computed in."""

from __future__ import annotations

from typing import Any

import jax

from llm_jax.ops.weights import is_weight_leaf
from llm_jax.types import Params, ParamSpec

# Norms, biases, positions and routers stay in float32: they are small, and the choice of experts
# hangs on small differences.
CAST_ROLES = ("matrix", "head", "embedding")


def cast_matrices(specs: Params, params: Params, dtype: Any) -> Params:
    """``params`` with the arrays of ``CAST_ROLES`` in ``dtype``. Leaf types stay as they are."""

    def one(weight: Any, spec: ParamSpec) -> Any:
        if is_weight_leaf(weight) or spec.role not in CAST_ROLES:
            return weight
        return weight.astype(dtype)

    return jax.tree.map(one, params, specs, is_leaf=is_weight_leaf)
