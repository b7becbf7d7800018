"""Rotary and sinusoidal positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def rope_frequencies(
    head_dim: int,
    *,
    theta: float = 10000.0,
    scaling: str = "none",
    factor: float = 1.0,
    original_length: int = 8192,
    low_frequency: float = 1.0,
    high_frequency: float = 4.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    factors: Sequence[float] = (),
    attention_factor: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Angular frequencies [H/2] (radians per position, float32) and the factor for sine and cosine
    (1 but for yarn and longrope).

    scaling: none; linear (Chen et al. 2023: positions divided by ``factor``); ntk (theta raised so
    that the slowest wave stretches by ``factor``); llama3 (Llama 3.1: long waves divided, short
    kept, smooth between); yarn (Peng et al. 2023, NTK-by-parts, its bounds whole numbers with
    ``truncate``, and attention factor 0.1·ln(factor)+1); longrope (Ding et al. 2024: frequency i
    divided by ``factors[i]``, attention factor sqrt(1 + ln(factor) / ln(original_length))).
    attention_factor: given, it replaces that of yarn or longrope. Raises ValueError for another
    name, an odd head_dim or another number of factors.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim; got {head_dim}")
    if scaling == "ntk":
        theta = theta * factor ** (head_dim / (head_dim - 2))
    # Rounded to float32 where Hugging Face's code rounds: one last bit here turns position 4,000 by
    # 2e-4 radians.
    waves = (
        np.float64(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    ).astype(np.float32)
    frequencies, implied = 1 / waves, 1.0
    if scaling == "linear":
        frequencies = frequencies / np.float32(factor)
    elif scaling == "llama3":
        turns = original_length / (np.float32(2 * math.pi) / frequencies)
        smooth = np.clip((turns - low_frequency) / (high_frequency - low_frequency), 0, 1)
        frequencies = (1 - smooth) * frequencies / factor + smooth * frequencies
    elif scaling == "yarn":
        low, high = (
            head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (beta_fast, beta_slow)
        )
        low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip(
            (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low))
            / np.float32(max(high - low, 0.001)),
            0,
            1,
        )
        kept = 1 - ramp
        frequencies = 1 / (factor * waves) * (1 - kept) + frequencies * kept
        implied = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    elif scaling == "longrope":
        if len(factors) != head_dim // 2:
            raise ValueError(
                f"longrope needs {head_dim // 2} factors, one for each frequency; got"
                f" {len(factors)}"
            )
        frequencies = 1 / (np.asarray(factors, np.float32) * waves)
        implied = math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0
    elif scaling not in ("none", "ntk"):
        raise ValueError(
            f"unknown rope scaling {scaling!r}; use none, linear, ntk, llama3, yarn or longrope"
        )
    assert frequencies.dtype == np.float32
    return frequencies, (attention_factor or implied) if scaling in ("yarn", "longrope") else 1.0


def rope_angles(
    positions: Array, frequencies: Array | np.ndarray, factor: float = 1.0
) -> tuple[Array, Array]:
    """Sine and cosine of every position's rotation, two [B, T, H/2].

    positions: [B, T]; frequencies: [H/2], or [B, T or 1, H/2] where tokens or rows have their own.
    """
    at = positions[:, :, None].astype(jnp.float32)
    each = jnp.asarray(frequencies)
    angles = at * (each[None, None, :] if each.ndim == 1 else each)
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def rotate(x: Array, sin: Array, cos: Array) -> Array:
    """Rotates each pair (x[i], x[i + R/2]) of the first R numbers of a head. x: [B, T, N, H]; sin,
    cos: [B, T, R/2], R at most H. Keeps x's dtype.
    """
    half = sin.shape[-1]
    a, b = (x[..., i * half : (i + 1) * half].astype(jnp.float32) for i in range(2))
    sin, cos = sin[:, :, None, :], cos[:, :, None, :]
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return out if 2 * half == x.shape[-1] else jnp.concatenate([out, x[..., 2 * half :]], axis=-1)


def rope(x: Array, positions: Array, **settings: float | str | int) -> Array:
    """Rotary position embedding (Su et al. 2021), half-split pairs as in Llama's released code for
    Hugging Face.

    x: [B, T, N, H], positions: [B, T] int. ``settings`` are those of ``rope_frequencies``. Keeps
    x's shape and dtype.
    """
    frequencies, factor = rope_frequencies(x.shape[-1], **settings)  # type: ignore[arg-type]
    return rotate(x, *rope_angles(positions, frequencies, factor))


def within_segments(segment_ids: Array) -> Array:
    """Place of each token in its segment, which is a run of equal numbers. segment_ids: int [B, T]
    -> int32 [B, T].
    """
    at = jnp.broadcast_to(
        jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :], segment_ids.shape
    )
    begins = jnp.pad(
        segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def segment_lengths(segment_ids: Array, positions: Array) -> Array:
    """Length of the segment that each token is in: its last position and one. The tokens may be in
    any order.

    segment_ids: int [B, T], numbers up to T; positions: int [B, T]. Returns int32 [B, T].
    """

    def of_row(ids: Array, at: Array) -> Array:
        by_id = jnp.zeros((ids.shape[0] + 1,), jnp.int32).at[ids].max(at.astype(jnp.int32) + 1)
        return by_id[ids]

    return jax.vmap(of_row)(segment_ids, positions)


def sinusoidal(positions: Array, dim: int) -> Array:
    """Position vectors of "Attention Is All You Need" (3.5), sines in the first half, cosines in
    the second.

    positions: [B, T] int; returns [B, T, dim] float32. Raises ValueError for an odd dim.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width; got {dim}")
    sin, cos = rope_angles(positions, rope_frequencies(dim)[0])
    return jnp.concatenate([sin, cos], axis=-1)
