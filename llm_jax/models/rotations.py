"""The angles by which queries and keys are rotated, for each kind of layer."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models.inputs import Angles
from llm_jax.ops.cache import Chunk
from llm_jax.ops.positions import rope_angles, rope_frequencies, segment_lengths
from llm_jax.types import Batch


def rotations(config: ModelConfig, batch: Batch, chunk: Chunk | None) -> dict[str, Angles]:
    """Sine and cosine of every rotation in use, by ``ModelConfig.rope``.

    Args:
        config: the model.
        batch: the tokens.
        chunk: what the call appends to a cache; None without one.
    """
    kinds = {config.rope(layer) for layer in range(config.num_layers)}
    angles: dict[str, Angles] = dict.fromkeys(kinds)
    if "main" in kinds:
        long, factor = _main(config, config.rope_factors)
        frequencies: np.ndarray | Array = long
        if config.rope_switch:
            short, _ = _main(config, config.rope_short_factors)
            frequencies = _by_length(config.rope_switch, short, long, batch, chunk)
        angles["main"] = rope_angles(batch.inputs.positions, frequencies, factor)
    if "windowed" in kinds:
        windowed = rope_frequencies(config.rope_width, theta=config.rope_theta_windowed)
        angles["windowed"] = rope_angles(batch.inputs.positions, *windowed)
    return angles


def _main(config: ModelConfig, factors: tuple[float, ...]) -> tuple[np.ndarray, float]:
    """Frequencies of the main rotation, and what multiplies sine and cosine. factors: of a scaling
    that has any.
    """
    return rope_frequencies(
        config.rope_width,
        theta=config.rope_theta,
        scaling=config.rope_scaling,
        factor=config.rope_factor,
        original_length=config.rope_original_length,
        low_frequency=config.rope_low_frequency,
        high_frequency=config.rope_high_frequency,
        beta_fast=config.rope_beta_fast,
        beta_slow=config.rope_beta_slow,
        truncate=config.rope_truncate,
        factors=factors,
        attention_factor=config.rope_attention_factor,
    )


def _by_length(
    switch: int, short: np.ndarray, long: np.ndarray, batch: Batch, chunk: Chunk | None
) -> Array:
    """Frequencies of each token, [B, T or 1, H/2]: the long ones in sequences of more than
    ``switch`` tokens.

    With a cache the length is that of the whole row, with the tokens in the cache. Where a row in a
    cache passes ``switch``, its earlier tokens were rotated by the short frequencies, and their
    hidden states depend on that: no continuation is right, and the frequencies are NaN (see
    ``Model.recompute_after``).
    """
    if chunk is None:
        lengths = segment_lengths(batch.inputs.segment_ids, batch.inputs.positions)
    else:
        ends = jnp.where(batch.inputs.segment_ids != 0, batch.inputs.positions + 1, 0)
        lengths = jnp.max(ends, axis=1, keepdims=True)
    is_long = lengths > switch
    frequencies = jnp.where(is_long[..., None], long[None, None, :], short[None, None, :])
    if chunk is None or chunk.begin:
        return frequencies
    begun_short = (chunk.start > 0) & (chunk.start <= switch)
    passes = is_long & begun_short[:, None]
    return jnp.where(passes[..., None], jnp.nan, frequencies)
