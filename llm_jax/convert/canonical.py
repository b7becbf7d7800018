"""The canonical form of a ``ModelConfig``: two configs of the same model compare equal in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from llm_jax.config.model import ModelConfig


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
        The fields ``rope_factors`` and ``rope_short_factors``. The second is empty where one list
        holds for every text.
    """
    if short and max_length <= original:
        return {"rope_factors": short, "rope_short_factors": ()}
    return {"rope_factors": long, "rope_short_factors": () if short == long else short}


def resolved(m: ModelConfig) -> ModelConfig:
    """The config with every derived default written out and every pattern in its shortest form."""
    windowed_theta = m.rope_theta_windowed
    # With scaling, windowed layers without their own base are scaled like the other layers. No
    # family's config file can express that, so 0 is kept.
    if not windowed_theta and m.rope_scaling == "none":
        windowed_theta = m.rope_theta
    grouped = m.expert_groups > 1
    rotated = [m.rope_pattern[l % len(m.rope_pattern)] for l in range(m.num_layers)]
    return dataclasses.replace(
        m,
        num_kv_heads=m.kv_heads,
        head_dim=m.head_size,
        attention_scale=m.attention_scale or m.head_size**-0.5,
        rope_theta_windowed=windowed_theta,
        expert_groups=m.expert_groups if grouped else 0,
        groups_per_token=m.groups_per_token if grouped else 1,
        encoder_mlp_dim=m.encoder_mlp_size if m.encoder_layers else 0,
        window_pattern=shortest([m.window(l) for l in range(m.num_layers)]),
        rope_pattern=shortest(rotated),
        **factors_in_use(
            m.rope_factors, m.rope_short_factors, m.rope_original_length, m.max_length
        ),
    )
