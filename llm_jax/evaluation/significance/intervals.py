"""Seeded bootstrap intervals (percentile method; Efron & Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.sums import (
    SEED,
    ItemSums,
    check_count,
    means,
    resampled_weights,
    scores_of,
)
from llm_jax.types import ConfigError, DataError


class Interval(NamedTuple):
    """A metric with its bootstrap percentile interval.

    Attributes:
        value: the metric of all items.
        low: lower percentile over resamples.
        high: upper percentile over resamples.
        items: number of items.
        signature: how the interval was made.
    """

    value: float
    low: float
    high: float
    items: int
    signature: str


def interval_of_sums(
    sums: ItemSums, *, resamples: int = 1000, confidence: float = 0.95, seed: int = SEED
) -> Interval:
    """The percentile interval of a metric that is a function of sums.

    Args:
        sums: of the items; ``means`` and ``ratios`` make them of values.
        resamples: number of bootstrap resamples.
        confidence: share of resamples inside, such as 0.95.
        seed: of the generator.

    Raises:
        ConfigError: ``resamples`` or ``confidence`` is out of range.
        DataError: there are no items, or a resample has no defined value.
    """
    count = len(sums.items)
    _check(count, resamples, confidence)
    blocks = resampled_weights(count, resamples, seed)
    scores = np.concatenate([scores_of(sums, block) for block in blocks])
    return _interval(sums.value, scores, count, confidence, seed)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = SEED,
) -> Interval:
    """The percentile interval of a mean; arguments as of ``interval_of_sums``."""
    return interval_of_sums(means(values), resamples=resamples, confidence=confidence, seed=seed)


def bootstrap_interval(
    metric: Callable[[np.ndarray], float],
    count: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = SEED,
) -> Interval:
    """The percentile interval of any metric of a corpus.

    Args:
        metric: the metric of the items at these indices [N], some of them drawn more than once.
        count: number of items.
        resamples: number of bootstrap resamples.
        confidence: share of resamples inside, such as 0.95.
        seed: of the generator.

    Raises:
        ConfigError: ``resamples`` or ``confidence`` is out of range.
        DataError: there are no items, or a resample has no defined value.
    """
    _check(count, resamples, confidence)
    rng = np.random.default_rng(seed)
    scores = np.array([metric(rng.choice(count, size=count)) for _ in range(resamples)])
    return _interval(float(metric(np.arange(count))), scores, count, confidence, seed)


def _check(count: int, resamples: int, confidence: float) -> None:
    check_count("resamples", resamples)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it expects a share such as 0.95")
    if count < 1:
        raise DataError("an interval needs at least one item, and there is none")


def _interval(
    value: float, scores: np.ndarray, count: int, confidence: float, seed: int
) -> Interval:
    undefined = int(np.isnan(scores).sum())
    if undefined:
        raise DataError(
            f"the metric is undefined in {undefined} of {len(scores)} resamples; there are too few"
            f" items ({count}) of a kind that it divides by"
        )
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(scores, [tail, 100 - tail])
    signature = f"bootstrap:{len(scores)}|confidence:{confidence:g}|seed:{seed}"
    return Interval(value, float(low), float(high), count, signature)
