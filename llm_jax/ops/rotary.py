"""Variants of rotary positions: interleaved pairs, and positions on several axes.

What they share with ``ops.positions`` is ``rope_frequencies`` and the shape of sine and cosine,
[B, T, R/2], so that either rotation takes the angles of either function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.positions import check_rotation, rope_angles, rope_frequencies
from llm_jax.ops.precision import widened

_LAYOUTS = ("sections", "interleaved")


def rotate_interleaved(x: Array, sin: Array, cos: Array) -> Array:
    """Rotates each pair (x[2i], x[2i + 1]) of the first R numbers of a head.

    These are the pairs of Su et al. 2021, of GPT-J and of RoFormer. ``rotate`` has those of
    GPT-NeoX and Llama, (x[i], x[i + R/2]).

    Args:
        x: [B, T, N, H].
        sin: [B or 1, T, R/2], R at most H.
        cos: [B or 1, T, R/2].

    Returns:
        [B, T, N, H] in x's dtype, computed in float32, or in float64 for x of float64.

    Raises:
        ValueError: shapes disagree.
    """
    check_rotation(x, sin, cos)
    half = sin.shape[-1]
    pairs = widened(x[..., : 2 * half]).reshape(*x.shape[:-1], half, 2)
    a = pairs[..., 0]
    b = pairs[..., 1]
    sin = sin[:, :, None, :]
    cos = cos[:, :, None, :]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    out = rotated.reshape(*x.shape[:-1], 2 * half).astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return out
    return jnp.concatenate([out, x[..., 2 * half :]], axis=-1)


def rope_interleaved(x: Array, positions: Array, **settings: Any) -> Array:
    """Rotary position embedding (Su et al. 2021) with pairs (2i, 2i + 1), as in GPT-J.

    Args:
        x: [B, T, N, H].
        positions: int [B, T].
        **settings: those of ``rope_frequencies``.

    Returns:
        [B, T, N, H] in x's dtype.
    """
    frequencies, factor = rope_frequencies(x.shape[-1], **settings)
    if x.dtype == jnp.float64:
        frequencies = frequencies.astype(np.float64)
    return rotate_interleaved(x, *rope_angles(positions, frequencies, factor))


def axial_frequencies(sections: Sequence[int], **settings: Any) -> np.ndarray:
    """Frequencies of axes that each have the whole range of waves, as in a 2-D rope of images.

    Args:
        sections: number of frequencies of each axis; two numbers of a head for each.
        **settings: those of ``rope_frequencies``.

    Returns:
        float32 [R/2], R/2 the sum of the sections.
    """
    parts = [rope_frequencies(2 * size, **settings)[0] for size in sections]
    return np.concatenate(parts)


def multi_axis_angles(
    positions: Array,
    frequencies: Array | np.ndarray,
    sections: Sequence[int],
    *,
    factor: float = 1.0,
    layout: str = "sections",
) -> tuple[Array, Array]:
    """Sine and cosine of tokens whose position has several axes, such as time, row and column.

    Each frequency turns with the position on one axis. With the frequencies of
    ``rope_frequencies`` these are the angles of M-RoPE (Qwen2-VL, section 2.1): a text token has
    the same position on all axes, and gets the angles of plain rope. With those of
    ``axial_frequencies`` they are the angles of a 2-D rope for patches of an image.

    Args:
        positions: int [B, T, A], the position of each token on each of A axes.
        frequencies: [R/2].
        sections: number of frequencies of each axis; they add up to R/2.
        factor: multiplies both.
        layout: ``sections``, the frequencies of an axis follow each other; or ``interleaved``, the
            axes take turns and the first one has what is left (Qwen3-VL).

    Returns:
        Two arrays float32 [B, T, R/2], for ``rotate`` or ``rotate_interleaved``.

    Raises:
        ValueError: the shapes disagree, or the layout is unknown.
    """
    frequencies = jnp.asarray(frequencies)
    if positions.ndim != 3 or positions.shape[-1] != len(sections):
        raise ValueError(
            f"positions have shape {positions.shape}; expected [B, T, A] with one axis for each of"
            f" the {len(sections)} sections"
        )
    if frequencies.shape != (sum(sections),):
        raise ValueError(
            f"sections {tuple(sections)} add up to {sum(sections)}, and there are frequencies of"
            f" shape {frequencies.shape}; expected [{sum(sections)}]"
        )
    axis = axis_of_frequencies(sections, layout)
    of_frequency = jnp.take(positions, jnp.asarray(axis), axis=-1).astype(jnp.float32)
    angles = of_frequency * frequencies[None, None, :]
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def axis_of_frequencies(sections: Sequence[int], layout: str = "sections") -> np.ndarray:
    """The axis whose position each frequency turns with: int32 [sum of the sections].

    Args:
        sections: number of frequencies of each axis.
        layout: as in ``multi_axis_angles``.

    Raises:
        ValueError: the layout is unknown, or these sections cannot be interleaved.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout is {layout!r}; use {' or '.join(_LAYOUTS)}")
    if layout == "sections":
        return np.repeat(np.arange(len(sections), dtype=np.int32), sections)
    count = sum(sections)
    axes = np.zeros(count, np.int32)
    for axis, size in enumerate(sections):
        if axis == 0:
            continue
        places = axis + len(sections) * np.arange(size)
        if size and places[-1] >= count:
            raise ValueError(
                f"sections {tuple(sections)} cannot be interleaved: axis {axis} has {size} of"
                f" {count} frequencies; give the first axis the most"
            )
        axes[places] = axis
    return axes
