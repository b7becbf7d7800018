"""The cause of logits that are NaN or infinite, for an error message."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.types import Params


def cause(
    params: Params, made_by: Callable[[Params], Params] | None = None, stored: Params = None
) -> str:
    """A sentence that names the first parameter that is not finite, or says that all are finite.

    Args:
        params: as the model reads them.
        made_by: the linear function that made ``params`` of the stored parameters; None where they
            are the same.
        stored: shapes and types of the stored parameters, whose paths are named.
    """

    def found(params: Params) -> Params:
        marks = jax.tree.map(lambda a: (~jnp.isfinite(a)).astype(a.dtype), params)
        if made_by is not None:
            # Carries each mark back to the parameter it comes from.
            (marks,) = jax.linear_transpose(made_by, stored)(marks)
        return jax.tree.map(_by_first_axis, marks)

    by_first_axis = jax.device_get(jax.jit(found)(params))
    for path, bad in jax.tree_util.tree_leaves_with_path(by_first_axis):
        if bad.any():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            # In a stack of layers the first index is the layer.
            first = int(np.argmax(bad))
            return (
                f"the first parameter that is not finite is {name}[{first}]; restore or convert the"
                " weights again"
            )
    return "all parameters are finite, so a number overflowed on the way"


def _by_first_axis(marks: Array) -> Array:
    """Whether each part along the first axis has a mark."""
    return jnp.any(marks != 0, axis=tuple(range(1, marks.ndim)))
