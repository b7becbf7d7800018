"""The loss by position: how much a model gains from the tokens before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.intervals import interval_of_sums
from llm_jax.evaluation.significance.sums import ratios
from llm_jax.types import DataError


class PositionLoss(NamedTuple):
    """The loss of tokens at a range of positions.

    Attributes:
        first: the fewest tokens that the model had read.
        last: the most.
        tokens: number of tokens.
        texts: number of texts that they are of.
        loss: mean negative log-likelihood, in nats.
        low: lower end of the 95 % interval, by a seeded bootstrap over texts; None with one text.
        high: upper end.
    """

    first: int
    last: int
    tokens: int
    texts: int
    loss: float
    low: float | None
    high: float | None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)


def loss_by_position(losses: Iterable[np.ndarray]) -> list[PositionLoss]:
    """The loss at positions 1, 2 to 3, 4 to 7, and so on by powers of two.

    Args:
        losses: of each text, the negative log-likelihood of each token after the first: element i
            is of the token that i + 1 tokens came before.

    Returns:
        One entry for each range in which some text has a token.

    Raises:
        DataError: there are no tokens, or a loss is NaN or infinite.
    """
    sums: dict[int, list[tuple[float, int]]] = {}
    for number, of_text in enumerate(losses):
        values = np.asarray(of_text, np.float64)
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"the loss of token {at + 1} of text {number} is {values[at]}")
        for power, start, end in _ranges(len(values)):
            part = values[start - 1 : end]
            sums.setdefault(power, []).append((float(part.sum()), len(part)))
    if not sums:
        raise DataError("there are no tokens to score: every text has fewer than two tokens")
    return [_position_loss(power, sums[power]) for power in sorted(sums)]


def _ranges(predictions: int) -> list[tuple[int, int, int]]:
    """Power of two, first and last position of each range that a text reaches."""
    powers = range(predictions.bit_length())
    return [(power, 2**power, min(2 ** (power + 1) - 1, predictions)) for power in powers]


def _position_loss(power: int, of_texts: Sequence[tuple[float, int]]) -> PositionLoss:
    totals, counts = np.array(of_texts, np.float64).T
    low: float | None = None
    high: float | None = None
    if len(of_texts) > 1:
        interval = interval_of_sums(ratios(totals, counts))
        low = interval.low
        high = interval.high
    return PositionLoss(
        first=2**power,
        last=2 ** (power + 1) - 1,
        tokens=int(counts.sum()),
        texts=len(of_texts),
        loss=float(totals.sum() / counts.sum()),
        low=low,
        high=high,
    )
