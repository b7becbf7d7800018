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
    """Angular frequencies of rotary positions, and a factor for sine and cosine.

    Args:
        head_dim: H, even.
        theta: base of the wave lengths.
        scaling: the method for longer texts:
            none;
            linear: positions divided by ``factor`` (Chen et al. 2023);
            ntk: theta raised so that the slowest wave stretches by ``factor``;
            llama3: long waves divided, short ones kept, smooth between (Llama 3.1);
            yarn: NTK-by-parts (Peng et al. 2023), with the attention factor 0.1·ln(factor) + 1;
            longrope: frequency i divided by ``factors[i]`` (Ding et al. 2024), with the attention
            factor sqrt(1 + ln(factor) / ln(original_length)).
        factor: by which texts may be longer.
        original_length: tokens of a text before scaling.
        low_frequency: of llama3, turns in the original length below which waves are divided.
        high_frequency: of llama3, turns above which they are kept.
        beta_fast: of yarn, turns in the original length above which waves are kept.
        beta_slow: of yarn, turns below which they are divided.
        truncate: of yarn, whether its bounds are rounded to whole dimensions.
        factors: of longrope, one for each frequency.
        attention_factor: replaces that of yarn or longrope; 0 keeps it.

    Returns:
        float32 [H/2], radians per position; and the factor, 1 but for yarn and longrope.

    Raises:
        ValueError: the scaling is unknown, head_dim is odd, or the number of factors is wrong.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim; got {head_dim}")
    if scaling == "ntk":
        theta = theta * factor ** (head_dim / (head_dim - 2))
    # Rounded to float32 where Hugging Face's code rounds: a difference in the last bit turns
    # position 4,000 by 2e-4 radians.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    waves = (np.float64(theta) ** exponents).astype(np.float32)
    frequencies = 1 / waves
    implied = 1.0
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
        kept = 1 - _yarn_ramp(head_dim, low, high, truncate)
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
    if scaling in ("yarn", "longrope"):
        return frequencies, attention_factor or implied
    return frequencies, 1.0


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
        positions: [B, T].
        frequencies: [H/2], or [B, T or 1, H/2] where tokens or rows have their own.
        factor: multiplies both.
    """
    at = positions[:, :, None].astype(jnp.float32)
    each = jnp.asarray(frequencies)
    angles = at * (each[None, None, :] if each.ndim == 1 else each)
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def rotate(x: Array, sin: Array, cos: Array) -> Array:
    """Rotates each pair (x[i], x[i + R/2]) of the first R numbers of a head.

    Args:
        x: [B, T, N, H].
        sin: [B, T, R/2], R at most H.
        cos: [B, T, R/2].

    Returns:
        [B, T, N, H] in x's dtype.
    """
    half = sin.shape[-1]
    a = x[..., :half].astype(jnp.float32)
    b = x[..., half : 2 * half].astype(jnp.float32)
    sin = sin[:, :, None, :]
    cos = cos[:, :, None, :]
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return out
    return jnp.concatenate([out, x[..., 2 * half :]], axis=-1)


def rope(x: Array, positions: Array, **settings: float | str | int) -> Array:
    """Rotary position embedding (Su et al. 2021), with pairs (i, i + H/2) as in Llama's code.

    Args:
        x: [B, T, N, H].
        positions: int [B, T].
        **settings: those of ``rope_frequencies``.

    Returns:
        [B, T, N, H] in x's dtype.
    """
    frequencies, factor = rope_frequencies(x.shape[-1], **settings)  # type: ignore[arg-type]
    return rotate(x, *rope_angles(positions, frequencies, factor))


def within_segments(segment_ids: Array) -> Array:
    """Position of each token in its segment, a run of equal ids: int [B, T] -> int32 [B, T]."""
    length = segment_ids.shape[1]
    at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], segment_ids.shape)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def segment_lengths(segment_ids: Array, positions: Array) -> Array:
    """Length of the segment of each token: its last position plus one.

    Args:
        segment_ids: int [B, T], numbers up to T, in any order.
        positions: int [B, T].

    Returns:
        int32 [B, T].
    """

    def of_row(ids: Array, at: Array) -> Array:
        by_id = jnp.zeros((ids.shape[0] + 1,), jnp.int32).at[ids].max(at.astype(jnp.int32) + 1)
        return by_id[ids]

    return jax.vmap(of_row)(segment_ids, positions)


def sinusoidal(positions: Array, dim: int) -> Array:
    """Position vectors of "Attention Is All You Need" (3.5): sines first, then cosines.

    Args:
        positions: int [B, T].
        dim: width, even.

    Returns:
        float32 [B, T, dim].

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width; got {dim}")
    sin, cos = rope_angles(positions, rope_frequencies(dim)[0])
    return jnp.concatenate([sin, cos], axis=-1)
