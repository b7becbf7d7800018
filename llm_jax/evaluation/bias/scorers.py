"""What a caller provides: functions that score texts; and checks of what they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llm_jax.types import DataError


class ContinuationScorer(Protocol):
    """Log-likelihood (nats) of each continuation after its prompt.

    An empty prompt asks for the log-likelihood of a whole text. Divide by the number of tokens in
    the scorer where texts of different length are to be compared by token.
    """

    def __call__(self, prompts: Sequence[str], continuations: Sequence[str]) -> Sequence[float]: ...


class MaskedScorer(Protocol):
    """A masked language model."""

    def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of a text, without those that begin and end a row."""
        ...

    def log_probs(self, tokens: Sequence[int], positions: Sequence[int]) -> Sequence[float]:
        """Log-probability (nats) of the token at each position, masked alone in the full row."""
        ...


def log_likelihoods(
    scorer: ContinuationScorer, prompts: Sequence[str], continuations: Sequence[str]
) -> np.ndarray:
    """What a scorer returns, float64 [N], checked.

    Raises:
        DataError: there are too few or too many scores, or one is NaN or infinite.
    """
    return checked_scores("scores", scorer(prompts, continuations), (len(prompts),))


def checked_scores(name: str, scores: object, shape: tuple[int, ...]) -> np.ndarray:
    """Scores as float64 of this shape.

    Raises:
        DataError: they have another shape, or one is NaN or infinite.
    """
    array = np.asarray(scores, np.float64)
    if array.shape != shape:
        raise DataError(f"{name} have the shape {array.shape}; {shape} is expected")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise DataError(
            f"{name}{list(at)} is {array[at]}; a text without a score is neither for nor against a"
            " stereotype: leave its item out, and report how many are"
        )
    return array
