"""The canonical form of a ``ModelConfig``: two configs of the same model compare equal in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import override
from llm_jax.config.positions import LongRopeScalingConfig, RopeConfig


def shortest(pattern: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest pattern that gives ``pattern`` when it is repeated and cut to its length."""
    for length in range(1, len(pattern) + 1):
        if all(value == pattern[i % length] for i, value in enumerate(pattern)):
            return tuple(pattern[:length])
    raise ValueError("pattern is empty; pass one value for each layer")


def factors_in_use(
    long: tuple[float, ...], short: tuple[float, ...], original: int, max_length: int
) -> dict[str, Any]:
    """The rotation factors of a longrope model that its texts can select.

    Args:
        long: Factors for texts longer than ``original``.
        short: Factors for texts of at most ``original`` tokens.
        original: Context length before scaling, in tokens.
        max_length: Context length of the model, in tokens.

    Returns:
        The lists of factors of ``LongRopeScalingConfig``. The second is empty where one list
        holds for every text.
    """
    if short and max_length <= original:
        return {"positions.scaling.factors": short, "positions.scaling.short_factors": ()}
    return {
        "positions.scaling.factors": long,
        "positions.scaling.short_factors": () if short == long else short,
    }


def resolved(m: ModelConfig) -> ModelConfig:
    """The config with every derived default written out and every pattern in its shortest form."""
    layers = range(m.num_layers)
    out: dict[str, Any] = {
        "attention.head_dim": m.head_dim,
        "attention.scale": m.attention.scale or m.head_dim**-0.5,
        "attention.window_pattern": shortest([m.window(l) for l in layers]),
    }
    if m.latent is None:
        out["attention.num_kv_heads"] = m.attention.kv_heads
    if m.experts and m.experts.groups and m.experts.groups.count == 1:
        out["experts.groups"] = "none"
    if m.encoder:
        out["encoder.mlp_dim"] = m.encoder_mlp_dim
    if m.rope:
        out |= _resolved_rope(m, m.rope)
    return override(m, out)


def _resolved_rope(m: ModelConfig, rope: RopeConfig) -> dict[str, Any]:
    rotated = [rope.pattern[l % len(rope.pattern)] for l in range(m.num_layers)]
    out: dict[str, Any] = {"positions.pattern": shortest(rotated)}
    # With scaling, windowed layers without their own base are scaled like the other layers. No
    # family's config file can express that, so 0 is kept.
    if rope.scaling is None:
        out["positions.windowed_theta"] = rope.windowed_theta or rope.theta
    if isinstance(rope.scaling, LongRopeScalingConfig):
        scaling = rope.scaling
        out |= factors_in_use(
            scaling.factors, scaling.short_factors, scaling.original_length, m.max_length
        )
    return out
