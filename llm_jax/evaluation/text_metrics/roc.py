"""How well scores put one kind of item before the other: the area under the ROC curve."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from llm_jax.types import DataError


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The probability that an item with the label has a higher score than one without; a tie counts
    one half (Hanley & McNeil 1982).

    Args:
        scores: of each item [N], finite.
        labels: whether each has the label [N].

    Returns:
        None where all items have the label, or none has.

    Raises:
        DataError: the shapes differ, there are no items, or a score is not finite.
    """
    values = np.asarray(scores, np.float64)
    has = np.asarray(labels, bool)
    if values.ndim != 1 or values.shape != has.shape or not len(values):
        raise DataError(
            f"scores have the shape {values.shape} and labels {has.shape}; one of each is expected"
            " for every item"
        )
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"scores[{at}] is {values[at]}; a finite number is expected")
    positive = int(has.sum())
    negative = len(has) - positive
    if not positive or not negative:
        return None
    # Mann & Whitney's U: ranks from 1 on, equal scores share the mean of theirs.
    ranks = rankdata(values)
    above = ranks[has].sum() - positive * (positive + 1) / 2
    return float(above / (positive * negative))
