"""Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from llm_jax.types import DataError


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1: the correlation of ranks, where equal values have the
    mean of theirs. NaN where all values of a side are equal.

    Raises:
        DataError: fewer than two values, or other numbers of them.
    """
    a, b = (np.asarray(side, np.float64) for side in (first, second))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise DataError(
            f"values have the shapes {a.shape} and {b.shape}; two or more of each are expected"
        )
    ranks = np.stack([rankdata(side) for side in (a, b)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return float("nan")
    x, y = ranks - ranks.mean(axis=1, keepdims=True)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
