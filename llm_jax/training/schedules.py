"""Schedules: the learning rate of optimizer step 0, 1, 2, …, as optax takes it. jax alone.

Each begins with a linear warm-up of ``warmup`` steps: step 0 has 1/warmup of the peak, and step
``warmup - 1`` the peak. ``steps`` are all steps of the run, with the warm-up; the last is
``steps - 1``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from llm_jax.types import ConfigError

# The learning rate of a step, a float32 scalar.
Schedule = Callable[[Array], Array]


def constant(peak: float, *, warmup: int = 0) -> Schedule:
    """The peak, from the warm-up on.

    Args:
        peak: highest learning rate.
        warmup: steps of linear warm-up.
    """
    return _after_warmup(peak, 1, warmup, jnp.ones_like)


def cosine(peak: float, steps: int, *, warmup: int = 0, final_ratio: float = 0.1) -> Schedule:
    """Half a cosine from the peak to the last step (Loshchilov and Hutter 2017).

    Args:
        peak: highest learning rate.
        steps: of the run.
        warmup: steps of linear warm-up.
        final_ratio: learning rate of the last step, as a share of the peak.
    """

    def course(progress: Array) -> Array:
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return _after_warmup(peak, steps, warmup, course)


def linear(peak: float, steps: int, *, warmup: int = 0, final_ratio: float = 0.1) -> Schedule:
    """A line from the peak to the last step.

    Args:
        peak: highest learning rate.
        steps: of the run.
        warmup: steps of linear warm-up.
        final_ratio: learning rate of the last step, as a share of the peak.
    """

    def course(progress: Array) -> Array:
        return 1 - (1 - final_ratio) * progress

    return _after_warmup(peak, steps, warmup, course)


def wsd(
    peak: float,
    steps: int,
    *,
    warmup: int = 0,
    final_ratio: float = 0.1,
    decay_fraction: float = 0.2,
) -> Schedule:
    """Warm-up, stable, decay: the peak, then a line to the last step (Hu et al. 2024, MiniCPM).

    Args:
        peak: highest learning rate.
        steps: of the run.
        warmup: steps of linear warm-up.
        final_ratio: learning rate of the last step, as a share of the peak.
        decay_fraction: share of the steps after warm-up in which it falls; more than 0, at most 1.

    Raises:
        ConfigError: decay_fraction is outside its range.
    """
    if not 0 < decay_fraction <= 1:
        raise ConfigError(f"decay_fraction is {decay_fraction}; it must be more than 0, at most 1")

    def course(progress: Array) -> Array:
        decayed = jnp.clip((progress - 1 + decay_fraction) / decay_fraction, 0, 1)
        return 1 - (1 - final_ratio) * decayed

    return _after_warmup(peak, steps, warmup, course)


def rsqrt(peak: float, *, warmup: int = 0) -> Schedule:
    """Falls as one over the root of the step, from the peak at the end of the warm-up (Vaswani et
    al. 2017, section 5.3).

    Args:
        peak: highest learning rate.
        warmup: steps of linear warm-up; 0 counts as 1.
    """
    _check(1, warmup)

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        return peak * jnp.minimum(warm, jnp.sqrt(max(warmup, 1) / (step + 1)))

    return schedule


def _after_warmup(
    peak: float, steps: int, warmup: int, course: Callable[[Array], Array]
) -> Schedule:
    """A warm-up, and then ``course``, the share of the peak at a progress from 0 to 1."""
    _check(steps, warmup)
    last = max(steps - 1, 1)

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(last - warmup, 1), 0, 1)
        warm = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        return peak * warm * course(progress)

    return schedule


def _check(steps: int, warmup: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps is {steps}; a schedule has at least 1")
    if warmup < 0:
        raise ConfigError(f"warmup is {warmup}; it must be at least 0")
