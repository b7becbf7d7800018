"""The sign test: do differences go one way more often than a fair coin would?"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np


class SignTest(NamedTuple):
    """Signs of differences.

    Attributes:
        positive: number of differences above 0.
        negative: number below 0.
        ties: number equal to 0, which the test leaves out.
        p_value: exact, two-sided; 1 where all are ties.
    """

    positive: int
    negative: int
    ties: int
    p_value: float


def sign_test(differences: Sequence[float] | np.ndarray) -> SignTest:
    """The exact two-sided binomial test of the signs of differences."""
    array = np.asarray(differences, np.float64)
    positive = int((array > 0).sum())
    negative = int((array < 0).sum())
    trials = positive + negative
    fewer = min(positive, negative)
    tail = sum(comb(trials, k) for k in range(fewer + 1))
    # Whole numbers of any size: their ratio is exact where a power of 0.5 would be 0.
    p_value = min(1.0, 2 * tail / 2**trials) if trials else 1.0
    return SignTest(positive, negative, len(array) - trials, p_value)
