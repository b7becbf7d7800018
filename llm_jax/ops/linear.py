"""A dense layer over any kind of weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.weights import Weight, matmul, to_array


def linear(x: Array, weight: Weight, bias: Array | None = None, *, num_inputs: int = 1) -> Array:
    """``x·weight + bias`` over the last axes of x: the product behind every weight of a model.

    Args:
        x: [..., inputs].
        weight: [inputs, outputs], an array or a leaf type of ``ops.weights``. Inputs and outputs
            may be several axes each.
        bias: [outputs], or None.
        num_inputs: number of input axes.

    Returns:
        [..., outputs] in x's dtype.

    Raises:
        ValueError: the axes of x, of the weight and of the bias disagree.
    """
    shape = _shape(weight)
    inputs = shape[:num_inputs]
    outputs = shape[num_inputs:]
    if x.shape[x.ndim - num_inputs :] != inputs:
        raise ValueError(
            f"linear has x {x.shape} and a weight {shape} with num_inputs={num_inputs}: the last"
            f" axes of x must be {inputs}"
        )
    y = matmul(x, weight, num_inputs)
    if bias is None:
        return y
    if bias.shape != outputs:
        raise ValueError(f"linear has a bias {bias.shape}; the weight's outputs are {outputs}")
    return y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - bias.ndim))


def _shape(weight: Weight) -> tuple[int, ...]:
    """The shape of the kernel that a weight stands for."""
    return jax.eval_shape(lambda w: to_array(w, jnp.float32), weight).shape
