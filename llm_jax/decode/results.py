"""What decoding gives: the tokens of a row, why they end, and how likely they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llm_jax.ops.sampling.logprobs import Logprobs

FinishReason = Literal["stop", "length"]


class TokenScore(NamedTuple):
    """How likely one token was.

    Attributes:
        id: of the token.
        logprob: natural logarithm of its probability; NaN where it was not asked for.
        rank: its place among all tokens, from 1 on; 0 where it was not asked for.
        top: (id, log-probability) of the most likely tokens there, the most likely first.
    """

    id: int
    logprob: float
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()


class Completion(NamedTuple):
    """One text that was written after a prompt.

    Attributes:
        ids: the new tokens; a token that ended the text is not among them.
        finish_reason: ``stop`` for a token or a text that ends it, ``length`` for
            ``max_new_tokens``.
        stop: what ended it, a token id or a text; None at ``length``.
        seed: that it was drawn with.
        order: of the processors.
        scores: of each new token; empty where none were asked for.
        text: the new text; empty where only token ids are at hand.
        score: of beam search, the sum of log-probabilities over the length penalty; None elsewhere.
        drafted: tokens that a draft proposed; 0 without a draft.
        accepted: those that the model accepted, and that are in the text or ended it.
    """

    ids: list[int]
    finish_reason: FinishReason
    stop: int | str | None
    seed: int
    order: str
    scores: tuple[TokenScore, ...] = ()
    text: str = ""
    score: float | None = None
    drafted: int = 0
    accepted: int = 0


def token_scores(ids: Sequence[int], scores: Logprobs) -> list[TokenScore]:
    """The scores of tokens, of arrays with a place for each."""
    of_places = (Logprobs(*(a[place] for a in scores)) for place in range(len(ids)))
    return [token_score(id, found) for id, found in zip(ids, of_places)]


def token_score(id: int, scores: Logprobs) -> TokenScore:
    """The score of a token, of arrays of its place."""
    top_ids = np.asarray(scores.top_ids).tolist()
    top = np.asarray(scores.top).tolist()
    return TokenScore(
        id=int(id),
        logprob=float(scores.chosen),
        rank=int(scores.rank),
        top=tuple(zip(top_ids, top)),
    )
