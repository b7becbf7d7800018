"""Do probabilities mean what they say? ECE, Brier score and the reliability table."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from llm_jax.types import ConfigError, DataError

Binning = Literal["width", "mass"]
_SUM_TOLERANCE = 1e-3


class ReliabilityBin(NamedTuple):
    """Answers of about the same confidence.

    Attributes:
        low: lower end: the bin's own for equal width, the least confidence in it for equal mass.
        high: upper end, in the same way; a confidence equal to it is in the bin.
        answers: their number.
        confidence: their mean confidence.
        accuracy: share of them that are right.
    """

    low: float
    high: float
    answers: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """Expected calibration error with the table that it is computed from.

    Attributes:
        ece: mean |accuracy - confidence| over bins, by their counts; 0 to 1 (Guo et al. 2017).
        mce: the largest |accuracy - confidence| of a bin.
        bins: those that are not empty, by confidence.
        signature: binning and number of bins.
    """

    ece: float
    mce: float
    bins: list[ReliabilityBin]
    signature: str


def calibration(
    confidences: np.ndarray, correct: np.ndarray, *, bins: int = 15, binning: Binning = "width"
) -> Calibration:
    """Expected calibration error and the reliability table.

    Args:
        confidences: probability of the given answer [N].
        correct: whether the answer is right [N].
        bins: their number.
        binning: ``width``: bins (k/M, (k+1)/M], with 0 in the first; ``mass``: bins of equally many
            answers, where answers of one confidence are never split.

    Raises:
        ConfigError: an option is out of range.
        DataError: the shapes differ, or a confidence is no probability.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}; it expects at least 1")
    if binning not in get_args(Binning):
        raise ConfigError(f"binning is {binning!r}; it expects width or mass")
    sure = _probabilities("confidences", confidences)
    right = np.asarray(correct, np.float64)
    if sure.ndim != 1 or sure.shape != right.shape:
        raise DataError(f"confidences have the shape {sure.shape} and correct {right.shape}")
    if not np.isin(right, (0, 1)).all():
        raise DataError("correct has values other than 0 and 1")
    numbers = _by_width(sure, bins) if binning == "width" else _by_mass(sure, bins)
    table = []
    for number in np.unique(numbers):
        inside = numbers == number
        low, high = sure[inside].min(), sure[inside].max()
        if binning == "width":
            low, high = number / bins, (number + 1) / bins
        table.append(
            ReliabilityBin(
                low=float(low),
                high=float(high),
                answers=int(inside.sum()),
                confidence=float(sure[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        )
    gaps = np.array([abs(each.accuracy - each.confidence) for each in table])
    counts = np.array([each.answers for each in table])
    ece = float((gaps * counts).sum() / counts.sum())
    return Calibration(ece, float(gaps.max()), table, f"bins:{bins}|binning:{binning}")


def _by_width(sure: np.ndarray, bins: int) -> np.ndarray:
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, sure, side="left")


def _by_mass(sure: np.ndarray, bins: int) -> np.ndarray:
    ordered = np.sort(sure)
    # Of equal confidences the first one's rank decides for all.
    rank = np.searchsorted(ordered, sure, side="left")
    return rank * bins // len(sure)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier score over all classes: mean of sum_k (p_k - [k is right])^2, 0 to 2 (Brier 1950).

    Of two classes it is twice what is often given, the mean of (p_1 - label)^2.

    Args:
        probabilities: [N, classes]; each row sums to 1.
        labels: index of the right class [N].

    Raises:
        DataError: the shapes do not fit, a row is no distribution, or a label names no class.
    """
    table = _probabilities("probabilities", probabilities)
    right = np.asarray(labels)
    if table.ndim != 2 or right.shape != table.shape[:1]:
        raise DataError(
            f"probabilities have the shape {table.shape} and labels {right.shape}; they expect"
            " [N, classes] and [N]"
        )
    wrong = np.flatnonzero(np.abs(table.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if len(wrong):
        at = int(wrong[0])
        raise DataError(f"probabilities[{at}] sum to {table[at].sum():.4g}; they expect 1")
    if not np.issubdtype(right.dtype, np.integer):
        raise DataError(f"labels are {right.dtype}; they expect indices of classes")
    if right.min() < 0 or right.max() >= table.shape[1]:
        raise DataError(
            f"labels go from {right.min()} to {right.max()}; there are {table.shape[1]} classes"
        )
    truth = np.zeros_like(table)
    truth[np.arange(len(table)), right] = 1
    return float(((table - truth) ** 2).sum(axis=1).mean())


def _probabilities(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not array.size:
        raise DataError(f"{name} is empty")
    outside = ~((array >= 0) & (array <= 1))
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise DataError(f"{name}{list(at)} is {array[at]}; it expects a probability from 0 to 1")
    return array
