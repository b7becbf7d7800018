"""What decoding gives: the tokens of a row, why they end, and how likely they were."""

from __future__ import annotations

from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


class TokenScore(NamedTuple):
    """How likely one token was.

    Attributes:
        id: of the token.
        logprob: natural logarithm of its probability.
        top: (id, log-probability) of the most likely tokens there, the most likely first.
    """

    id: int
    logprob: float
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
    drafted: int = 0
    accepted: int = 0
