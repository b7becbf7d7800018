"""The angles by which queries and keys are rotated, for each kind of layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.config.positions import LongRopeScalingConfig, RopeConfig
from llm_jax.config.sections import kind_of
from llm_jax.models.inputs import Angles
from llm_jax.ops.cache import Chunk
from llm_jax.ops.positions import rope_angles, rope_frequencies, segment_lengths
from llm_jax.types import Batch


def rotations(config: ModelConfig, batch: Batch, chunk: Chunk | None) -> dict[str, Angles]:
    """Sine and cosine of every rotation in use, by ``ModelConfig.rotation``.

    Args:
        config: the model.
        batch: the tokens.
        chunk: what the call appends to a cache; None without one.
    """
    kinds = {config.rotation(layer) for layer in range(config.num_layers)}
    angles: dict[str, Angles] = dict.fromkeys(kinds)
    rope = config.rope
    if rope is None:
        return angles
    if "main" in kinds:
        long, factor = _main(config, rope)
        frequencies: np.ndarray | Array = long
        if config.rope_switch:
            short, _ = _main(config, _with_short_factors(rope))
            frequencies = _by_length(config.rope_switch, short, long, batch, chunk)
        angles["main"] = rope_angles(batch.inputs.positions, frequencies, factor)
    if "windowed" in kinds:
        windowed = rope_frequencies(config.rope_width, theta=rope.windowed_theta)
        angles["windowed"] = rope_angles(batch.inputs.positions, *windowed)
    return angles


def _with_short_factors(rope: RopeConfig) -> RopeConfig:
    """The rotation of texts that are short enough for the short factors."""
    assert isinstance(rope.scaling, LongRopeScalingConfig)
    scaling = dataclasses.replace(rope.scaling, factors=rope.scaling.short_factors)
    return dataclasses.replace(rope, scaling=scaling)


def _main(config: ModelConfig, rope: RopeConfig) -> tuple[np.ndarray, float]:
    """Frequencies of ``rope``, and what multiplies sine and cosine."""
    settings: dict[str, Any] = {"theta": rope.theta, "scaling": kind_of(rope.scaling)}
    if rope.scaling is not None:
        settings |= dataclasses.asdict(rope.scaling)
    settings.pop("short_factors", None)
    return rope_frequencies(config.rope_width, **settings)


def _by_length(
    switch: int, short: np.ndarray, long: np.ndarray, batch: Batch, chunk: Chunk | None
) -> Array:
    """Frequencies of each token, [B, T or 1, H/2]: the long ones in sequences of more than
    ``switch`` tokens.

    With a cache the length is that of the whole row, with the tokens in the cache. Where a row in a
    cache passes ``switch``, its earlier tokens were rotated by the short frequencies, and their
    hidden states depend on that: no continuation is right, and the frequencies are NaN (see
    ``ModelConfig.rope_switch``).
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
