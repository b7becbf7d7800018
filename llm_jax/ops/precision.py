"""The type that sums are kept in: float32, or float64 where the arrays have it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array


def accumulator(*arrays: Array) -> Any:
    """The dtype to sum in: at least float32, and float64 if an array is of float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def widened(x: Array) -> Array:
    """x in ``accumulator(x)``."""
    return x.astype(accumulator(x))
