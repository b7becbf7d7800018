"""Is the difference between two systems on the same items more than chance?"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from llm_jax.evaluation.significance.sums import (
    SEED,
    ItemSums,
    check_count,
    resampled_weights,
    scores_of,
    swaps,
)
from llm_jax.types import ConfigError, DataError

Definition = Literal["two-sided", "sacrebleu"]

# Scores of one corpus summed in another order differ by rounding; they count as equal.
_ROUNDING = 1e-9


class PairedTest(NamedTuple):
    """The comparison of two systems.

    Attributes:
        first: metric of the first system.
        second: metric of the second system.
        difference: second minus first.
        low: lower 2.5 % of the difference over bootstrap resamples; None of approximate
            randomization.
        high: its upper 2.5 %; None of approximate randomization.
        p_value: two-sided.
        signature: the test, its samples, seed and definition.
    """

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    signature: str


def paired_bootstrap(
    first: ItemSums,
    second: ItemSums,
    *,
    samples: int = 1000,
    seed: int = SEED,
    definition: Definition = "two-sided",
) -> PairedTest:
    """Paired bootstrap: both systems on the same resampled items (Koehn 2004).

    ``two-sided`` counts the resamples whose difference lies at least as far from the mean
    difference as the measured one from 0. ``sacrebleu`` is the p-value that sacrebleu prints: it
    takes the absolute difference before it subtracts the mean, so it is about half as large, and it
    counts strictly larger ones only, so that a system compared with itself has the smallest
    p-value.

    Args:
        first: sums of the first system, one row an item.
        second: sums of the second system over the same items.
        samples: number of resamples.
        seed: of the generator.
        definition: of the p-value.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the systems have different items, or one only.
    """
    _check(first, second, samples, definition)
    if len(first.items) < 2:
        raise DataError("one item cannot be resampled; compare two systems on more of them")
    differences = []
    for weights in resampled_weights(len(first.items), samples, seed):
        differences.append(scores_of(second, weights) - scores_of(first, weights))
    found = np.concatenate(differences)
    measured = abs(second.value - first.value)
    if definition == "sacrebleu":
        sizes = np.abs(found)
        p_value = _p_value(sizes - sizes.mean() > measured)
    else:
        p_value = _p_value(np.abs(found - found.mean()) >= measured - _ROUNDING)
    low, high = np.percentile(found, [2.5, 97.5])
    signature = f"test:bs|samples:{samples}|seed:{seed}|p:{definition}"
    tested = _tested(first, second, p_value, signature)
    return tested._replace(low=float(low), high=float(high))


def approximate_randomization(
    first: ItemSums,
    second: ItemSums,
    *,
    samples: int = 10_000,
    seed: int = SEED,
    definition: Definition = "two-sided",
) -> PairedTest:
    """Approximate randomization: each item's two answers are swapped by a coin (Riezler & Maxwell
    2005).

    ``two-sided`` counts trials whose absolute difference is at least the measured one;
    ``sacrebleu`` those where it is strictly larger, so that a system compared with itself has the
    smallest p-value.

    Args:
        first: sums of the first system, one row an item.
        second: sums of the second system over the same items.
        samples: number of trials.
        seed: of the generator.
        definition: of the p-value.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the systems have different items.
    """
    _check(first, second, samples, definition)
    measured = abs(second.value - first.value)
    larger = []
    for kept in swaps(len(first.items), samples, seed):
        stays = kept @ first.items + (1 - kept) @ second.items
        moves = (1 - kept) @ first.items + kept @ second.items
        one, other = (np.array([first.score(each) for each in of]) for of in (stays, moves))
        sizes = np.abs(one - other)
        if definition == "sacrebleu":
            larger.append(sizes > measured)
        else:
            larger.append(sizes >= measured - _ROUNDING)
    signature = f"test:ar|samples:{samples}|seed:{seed}|p:{definition}"
    return _tested(first, second, _p_value(np.concatenate(larger)), signature)


def _tested(first: ItemSums, second: ItemSums, p_value: float, signature: str) -> PairedTest:
    return PairedTest(
        first=first.value,
        second=second.value,
        difference=second.value - first.value,
        low=None,
        high=None,
        p_value=p_value,
        signature=signature,
    )


def _p_value(larger: np.ndarray) -> float:
    # The measured difference is one of the possible ones, so a p-value is never 0.
    return (int(larger.sum()) + 1) / (len(larger) + 1)


def _check(first: ItemSums, second: ItemSums, samples: int, definition: str) -> None:
    check_count("samples", samples)
    if definition not in get_args(Definition):
        known = ", ".join(get_args(Definition))
        raise ConfigError(f"definition is {definition!r}; it expects one of {known}")
    if first.items.shape != second.items.shape:
        raise DataError(
            f"the first system has {len(first.items)} items and the second {len(second.items)}"
            f" (statistics {first.items.shape} and {second.items.shape}); compare them on the same"
            " items, by the same metric"
        )
    if not len(first.items):
        raise DataError("there are no items to compare two systems on")
