"""Rotary and sinusoidal positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.precision import accumulator, widened


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
    """Angular frequencies of rotary positions, and a factor for sine and cosine.

    ``scaling`` is the method for texts that are longer than the original length: ``none``;
    ``linear`` divides positions by ``factor`` (Chen et al. 2023); ``ntk`` raises theta so that the
    slowest wave is ``factor`` times as long; ``llama3`` divides the frequencies of long waves,
    keeps those of short ones and interpolates between (Llama 3.1); ``yarn`` is NTK-by-parts with
    the attention factor 0.1·ln(factor) + 1 (Peng et al. 2023); ``longrope`` divides frequency i by
    ``factors[i]``, with the attention factor sqrt(1 + ln(factor) / ln(original_length)) (Ding et
    al. 2024).

    Args:
        head_dim: H, even.
        theta: base of the wave lengths.
        scaling: one of the methods above.
        factor: how many times as long as the original length texts may be.
        original_length: tokens of a text before scaling.
        low_frequency: llama3 divides waves with fewer turns than this in the original length.
        high_frequency: llama3 keeps waves with more turns than this.
        beta_fast: yarn keeps waves with more turns than this in the original length.
        beta_slow: yarn divides waves with fewer turns than this.
        truncate: yarn rounds these bounds to whole dimensions.
        factors: of longrope, one for each frequency.
        attention_factor: replaces the attention factor of yarn or longrope; 0 keeps it.

    Returns:
        float32 [H/2], radians per position; and the factor for sine and cosine, which is the
        attention factor of yarn and longrope, and 1 for the other methods.

    Raises:
        ValueError: the scaling is unknown, head_dim is odd, or the number of factors is wrong.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim; got {head_dim}")
    if scaling == "ntk":
        theta = theta * factor ** (head_dim / (head_dim - 2))
    waves = _waves(head_dim, theta)
    if scaling in ("none", "ntk"):
        return 1 / waves, 1.0
    if scaling == "linear":
        return 1 / waves / np.float32(factor), 1.0
    if scaling == "llama3":
        bounds = (low_frequency, high_frequency)
        return _llama3(waves, factor, original_length, bounds), 1.0
    if scaling == "yarn":
        low = _dimension_of_turns(beta_fast, head_dim, theta, original_length)
        high = _dimension_of_turns(beta_slow, head_dim, theta, original_length)
        divided = _yarn_ramp(head_dim, low, high, truncate)
        return _yarn(waves, factor, divided), attention_factor or _yarn_attention_factor(factor)
    if scaling == "longrope":
        implied = _longrope_attention_factor(factor, original_length)
        return _longrope(waves, factors), attention_factor or implied
    raise ValueError(
        f"unknown rope scaling {scaling!r}; use none, linear, ntk, llama3, yarn or longrope"
    )


def _waves(head_dim: int, theta: float) -> np.ndarray:
    """float32 [H/2]: wave lengths in tokens per radian.

    Rounded to float32 where Hugging Face's code rounds: a difference in the last bit turns position
    4,000 by 2e-4 radians.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (np.float64(theta) ** exponents).astype(np.float32)


def _llama3(
    waves: np.ndarray, factor: float, original_length: int, bounds: tuple[float, float]
) -> np.ndarray:
    """Frequencies of Llama 3.1.

    Args:
        waves: float32 [H/2].
        factor: divides the frequencies of long waves.
        original_length: in tokens.
        bounds: turns in the original length: waves with fewer than the first are divided, waves
            with more than the second are kept.
    """
    low, high = bounds
    frequencies = 1 / waves
    turns = original_length / (np.float32(2 * math.pi) / frequencies)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def _yarn(waves: np.ndarray, factor: float, divided: np.ndarray) -> np.ndarray:
    """Frequencies of YaRN: ``divided`` [H/2] is the share of each that is divided by ``factor``."""
    kept = 1 - divided
    return 1 / (factor * waves) * (1 - kept) + 1 / waves * kept


def _dimension_of_turns(turns: float, head_dim: int, theta: float, original_length: int) -> float:
    """The dimension whose wave turns ``turns`` times in ``original_length`` tokens."""
    return head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_attention_factor(factor: float) -> float:
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope(waves: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Frequencies of LongRoPE, each divided by a factor of its own."""
    if len(factors) != len(waves):
        raise ValueError(
            f"longrope needs {len(waves)} factors, one for each frequency; got {len(factors)}"
        )
    return 1 / (np.asarray(factors, np.float32) * waves)


def _longrope_attention_factor(factor: float, original_length: int) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0


def _yarn_ramp(head_dim: int, low: float, high: float, truncate: bool) -> np.ndarray:
    """float32 [H/2]: 0 up to dimension ``low``, 1 from dimension ``high``, linear between."""
    if truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, head_dim - 1)
    dimensions = np.arange(head_dim // 2, dtype=np.float32)
    ramp = (dimensions - np.float32(low)) / np.float32(max(high - low, 0.001))
    return np.clip(ramp, 0, 1)


def rope_angles(
    positions: Array, frequencies: Array | np.ndarray, factor: float = 1.0
) -> tuple[Array, Array]:
    """Sine and cosine of every position's rotation, [B, T, H/2] each.

    Args:
        positions: [B, T], or [T] where all rows have the same.
        frequencies: [H/2], or [B, T or 1, H/2] where tokens or rows have their own.
        factor: multiplies both.

    Returns:
        float32, or float64 for frequencies or positions of float64; B is 1 for positions [T].

    Raises:
        ValueError: positions have another number of axes.
    """
    positions = _row_positions(positions)
    frequencies = jnp.asarray(frequencies)
    if frequencies.ndim == 1:
        frequencies = frequencies[None, None, :]
    dtype = accumulator(frequencies)
    if jnp.issubdtype(positions.dtype, jnp.floating):
        dtype = accumulator(frequencies, positions)
    angles = positions[:, :, None].astype(dtype) * frequencies
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def _row_positions(positions: Array) -> Array:
    """Positions as [B or 1, T]."""
    positions = jnp.asarray(positions)
    if positions.ndim not in (1, 2):
        raise ValueError(f"positions have shape {positions.shape}; they must be [B, T] or [T]")
    return positions if positions.ndim == 2 else positions[None, :]


def rotate(x: Array, sin: Array, cos: Array) -> Array:
    """Rotates each pair (x[i], x[i + R/2]) of the first R numbers of a head.

    Args:
        x: [B, T, N, H].
        sin: [B or 1, T, R/2], R at most H.
        cos: [B or 1, T, R/2].

    Returns:
        [B, T, N, H] in x's dtype, computed in float32, or in float64 for x of float64.

    Raises:
        ValueError: shapes disagree.
    """
    half = sin.shape[-1]
    check_rotation(x, sin, cos)
    a = widened(x[..., :half])
    b = widened(x[..., half : 2 * half])
    sin = sin[:, :, None, :]
    cos = cos[:, :, None, :]
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return out
    return jnp.concatenate([out, x[..., 2 * half :]], axis=-1)


def check_rotation(x: Array, sin: Array, cos: Array) -> None:
    """Raises ValueError where angles [B or 1, T, R/2] do not fit x [B, T, N, H]."""
    if x.ndim != 4:
        raise ValueError(f"rope got x {x.shape}; it must be [B, T, N, H]")
    B, T = x.shape[:2]
    rows, length = sin.shape[:2]
    if length != T or rows not in (1, B):
        swapped = "; swap its axes 1 and 2" if length == x.shape[2] else ""
        raise ValueError(
            f"rope got x {x.shape}, which is [B, T, N, H], and positions of {rows} rows of"
            f" {length} tokens; x has {B} rows of {T}{swapped}"
        )
    if cos.shape != sin.shape or 2 * sin.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"rope got sin {sin.shape} and cos {cos.shape} for heads of {x.shape[-1]}; they must be"
            f" of one shape, with at most {x.shape[-1] // 2} angles"
        )


def rope(x: Array, positions: Array, **settings: Any) -> Array:
    """Rotary position embedding (Su et al. 2021), with pairs (i, i + H/2) as in Llama's code.

    Args:
        x: [B, T, N, H].
        positions: int [B, T], or [T] where all rows have the same.
        **settings: those of ``rope_frequencies``.

    Returns:
        [B, T, N, H] in x's dtype, computed in float32, or in float64 for x of float64.

    Raises:
        ValueError: shapes disagree.
    """
    frequencies, factor = rope_frequencies(x.shape[-1], **settings)
    if x.dtype == jnp.float64:
        frequencies = frequencies.astype(np.float64)
    return rotate(x, *rope_angles(positions, frequencies, factor))


def within_segments(segment_ids: Array) -> Array:
    """Position of each token in its segment, a run of equal ids: int [B, T] -> int32 [B, T]."""
    _check_rows("segment_ids", segment_ids)
    length = segment_ids.shape[1]
    at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], segment_ids.shape)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def segment_lengths(segment_ids: Array, positions: Array) -> Array:
    """Length of the segment of each token: its last position plus one.

    Args:
        segment_ids: int [B, T], numbers up to T, in any order.
        positions: int [B, T], or [T] where all rows have the same.

    Returns:
        int32 [B, T].

    Raises:
        ValueError: shapes disagree.
    """
    _check_rows("segment_ids", segment_ids)
    positions = _row_positions(positions)
    if positions.shape[0] not in (1, segment_ids.shape[0]) or positions.shape[1:] != (
        segment_ids.shape[1],
    ):
        raise ValueError(
            f"segment_lengths got segment_ids {segment_ids.shape} and positions {positions.shape};"
            " they must be of the same tokens"
        )
    at = jnp.broadcast_to(positions, segment_ids.shape)
    return place_automatically(_longest, explicit_spec(segment_ids), segment_ids, at)


def _longest(segment_ids: Array, positions: Array) -> Array:
    def of_row(ids: Array, at: Array) -> Array:
        by_id = jnp.zeros((ids.shape[0] + 1,), jnp.int32).at[ids].max(at.astype(jnp.int32) + 1)
        return by_id[ids]

    return jax.vmap(of_row)(segment_ids, positions)


def _check_rows(name: str, ids: Array) -> None:
    if ids.ndim != 2:
        raise ValueError(f"{name} have shape {ids.shape}; they must be [B, T]")


def sinusoidal(positions: Array, dim: int) -> Array:
    """Position vectors of "Attention Is All You Need" (3.5): sines first, then cosines.

    Args:
        positions: int [B, T], or [T] where all rows have the same.
        dim: width, even.

    Returns:
        float32 [B, T, dim]; B is 1 for positions [T].

    Raises:
        ValueError: dim is odd, or positions have another number of axes.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width; got {dim}")
    sin, cos = rope_angles(positions, rope_frequencies(dim)[0])
    return jnp.concatenate([sin, cos], axis=-1)
