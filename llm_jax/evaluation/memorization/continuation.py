"""Memorization: how far a model continues training text word for word (Carlini et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.intervals import Interval, mean_interval
from llm_jax.evaluation.significance.sums import SEED
from llm_jax.types import ConfigError, DataError


class ContinuationStatistics(NamedTuple):
    """Exact continuation of training texts.

    Attributes:
        lengths: number of leading tokens that agree, of each prompt [N].
        mean: of these lengths, with its interval.
        median: of these lengths.
        longest: of these lengths.
        extracted: by length, the share of prompts whose continuation agrees for at least that many
            tokens, with its interval; only prompts whose true continuation is that long count, and
            None stands where there are none.
        whole: share of prompts whose true continuation is given to its end.
    """

    lengths: np.ndarray
    mean: Interval
    median: float
    longest: int
    extracted: dict[int, Interval | None]
    whole: float


def common_prefix_length(given: Sequence[int], true: Sequence[int]) -> int:
    """How many leading tokens of two rows agree."""
    length = min(len(given), len(true))
    differs = np.flatnonzero(np.asarray(given[:length]) != np.asarray(true[:length]))
    return int(differs[0]) if len(differs) else length


def continuation_statistics(
    given: Sequence[Sequence[int]],
    true: Sequence[Sequence[int]],
    *,
    lengths: Sequence[int] = (10, 25, 50),
    resamples: int = 1000,
    seed: int = SEED,
) -> ContinuationStatistics:
    """How many leading tokens of greedy continuations are those of the training text.

    Report the same of held-out text beside it: common phrases are continued rightly without having
    been memorized.

    Args:
        given: token ids that the model gives after each prompt.
        true: token ids that follow the prompt in the training text.
        lengths: from which on a text counts as extracted; 50 is usual.
        resamples: of the bootstrap intervals.
        seed: of the bootstrap.

    Raises:
        ConfigError: a length is below 1.
        DataError: there are no prompts, the numbers differ, or a true continuation is empty.
    """
    if not len(true) or len(given) != len(true):
        raise DataError(f"there are {len(given)} continuations and {len(true)} true ones")
    if any(length < 1 for length in lengths):
        raise ConfigError(f"lengths are {tuple(lengths)}; each expects at least 1")
    sizes = np.array([len(each) for each in true])
    if not sizes.all():
        raise DataError(
            f"true[{int(np.flatnonzero(sizes == 0)[0])}] is empty; leave out prompts at the end of"
            " their document"
        )
    agree = np.array([common_prefix_length(*pair) for pair in zip(given, true, strict=True)])
    options = {"resamples": resamples, "seed": seed}
    extracted: dict[int, Interval | None] = {}
    for length in lengths:
        long_enough = sizes >= length
        reached = agree[long_enough] >= length
        extracted[length] = mean_interval(reached, **options) if len(reached) else None
    return ContinuationStatistics(
        lengths=agree,
        mean=mean_interval(agree, **options),
        median=float(np.median(agree)),
        longest=int(agree.max()),
        extracted=extracted,
        whole=float((agree == sizes).mean()),
    )
