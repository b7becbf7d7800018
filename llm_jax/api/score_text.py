"""The loss of one text, with the counts that perplexities are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_jax.api.texts import Ids
from llm_jax.decode.score import Scorer
from llm_jax.evaluation.documents import scored_text
from llm_jax.evaluation.perplexity import Perplexity, windows
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError


class TextScorer:
    """Scores texts with one model.

    Args:
        scorer: runs the model.
        tokenizer: the model's; None for a model without one, whose texts have no words or bytes.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer | None) -> None:
        self._scorer = scorer
        self._tokenizer = tokenizer

    def score(self, row: Ids, reads: Sequence[Ids], context: int, stride: int) -> Perplexity:
        """Scores every token of a row but the first, in windows.

        Args:
            row: token ids.
            reads: what the encoder reads, one row; empty where the model has no encoder.
            context: tokens of a window.
            stride: tokens newly scored in each further window.

        Raises:
            ConfigError: the row has no token to score.
        """
        if len(row) < 2:
            raise ConfigError(
                f"text of {len(row)} tokens: nothing predicts its first one, so that there is none"
                " to score; give a longer text"
            )
        nll = 0.0
        tokens = 0
        for window in windows(np.asarray(row, np.int64), context, stride):
            scored = self._scorer.nll([window.tokens.tolist()], reads)[0][-window.scored :]
            nll += float(scored.sum(dtype=np.float64))
            tokens += window.scored
        words, size = self._text_size(row)
        return Perplexity(nll, tokens, words, size, context, stride, bos=self._has_start(row))

    def _text_size(self, row: Ids) -> tuple[int, int]:
        """Words and bytes of the scored text; 0 and 0 without a tokenizer."""
        return (0, 0) if self._tokenizer is None else scored_text(row, self._tokenizer)

    def _has_start(self, row: Ids) -> bool:
        """Whether a row begins with a token that is no text."""
        return self._tokenizer is not None and self._tokenizer.is_control(int(row[0]))
