"""ALiBi: a bias on attention's scores that falls linearly with the distance (Press et al. 2022)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.precision import widened


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slope of each head (Press et al. 2022, section 3, and its released code).

    For a power of two N the slopes are 2**(-8/N), 2**(-16/N), …, 2**-8. Another N has the slopes
    of the power of two below it, and then every second slope of the power of two above it.

    Args:
        num_heads: N.

    Returns:
        float32 [N].

    Raises:
        ValueError: there are no heads.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; ALiBi needs at least 1")
    below = 2 ** (num_heads.bit_length() - 1)
    between = _of_power_of_two(2 * below)[::2]
    slopes = [*_of_power_of_two(below), *between[: num_heads - below]]
    return np.array(slopes, np.float32)


def _of_power_of_two(num_heads: int) -> list[float]:
    return [2.0 ** (-8 * (head + 1) / num_heads) for head in range(num_heads)]


def alibi_bias(slopes: Array | np.ndarray, q_index: Array, k_index: Array) -> Array:
    """What the distance between query and key takes from their score: slope · distance.

    It is the ``bias`` of ``attention``. Only differences of positions count, so the positions may
    be those in the row or those in a packed document; the mask hides keys of other documents. With
    a cache, ``k_index`` has the positions of the cached keys.

    Args:
        slopes: [N], as ``alibi_slopes`` returns them.
        q_index: int [B or 1, T] or [T], positions of queries.
        k_index: int [B or 1, S] or [S], positions of keys. Keys after the query count by their
            distance too, for attention in both directions.

    Returns:
        float32 [B or 1, N, T, S], at most 0; float64 for slopes of it.

    Raises:
        ValueError: an argument has another rank.
    """
    slopes = widened(jnp.asarray(slopes))
    if slopes.ndim != 1:
        raise ValueError(f"ALiBi slopes have shape {slopes.shape}; expected [N]")
    q = _rows("q_index", q_index)
    k = _rows("k_index", k_index)
    distance = jnp.abs(q[:, :, None] - k[:, None, :]).astype(slopes.dtype)
    return -slopes[None, :, None, None] * distance[:, None]


def _rows(name: str, index: Array) -> Array:
    """Positions as [B or 1, length]."""
    index = jnp.asarray(index)
    if index.ndim == 1:
        return index[None, :]
    if index.ndim != 2:
        raise ValueError(f"{name} has shape {index.shape}; expected [B or 1, length] or [length]")
    return index
