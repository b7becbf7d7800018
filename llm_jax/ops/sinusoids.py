"""Sinusoidal positions on a plane, for the patches of images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array


def grid_positions(height: int, width: int) -> Array:
    """Row and column of each patch of an image, row by row: int32 [height·width, 2]."""
    rows = jnp.arange(height, dtype=jnp.int32)
    columns = jnp.arange(width, dtype=jnp.int32)
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def sinusoidal_2d(
    positions: Array, dim: int, *, longest_wave: float = 10_000.0, inclusive: bool = False
) -> Array:
    """Position vectors of patches: sines and cosines of the column, then those of the row.

    The order is that of the released code of MAE (He et al. 2022) and of ViT baselines (Beyer et
    al. 2022).

    Args:
        positions: [..., 2], row and column.
        dim: width, a multiple of 4; a quarter each for sine and cosine of column and row.
        longest_wave: bounds the wave lengths, which grow geometrically from 1.
        inclusive: the last wave has this length, as in ViT baselines; otherwise the wave after the
            last would have it, as in MAE.

    Returns:
        float32 [..., dim].

    Raises:
        ValueError: dim is no multiple of 4, or positions have another number of axes.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"2-D sinusoids need a width that is a multiple of 4; got {dim}")
    if positions.shape[-1:] != (2,):
        raise ValueError(f"positions have shape {positions.shape}; expected [..., 2]")
    count = dim // 4
    if inclusive and count < 2:
        raise ValueError(f"inclusive waves need a width of at least 8; got {dim}")
    steps = np.arange(count) / (count - 1 if inclusive else count)
    frequencies = jnp.asarray(longest_wave**-steps, jnp.float32)
    waves = jnp.expand_dims(frequencies, range(positions.ndim))
    angles = positions.astype(jnp.float32)[..., None] * waves
    row = angles[..., 0, :]
    column = angles[..., 1, :]
    parts = [jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)]
    return jnp.concatenate(parts, axis=-1)
