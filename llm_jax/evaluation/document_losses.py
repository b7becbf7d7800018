"""The loss of each document of a split, and of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.decode.score import Scorer
from llm_jax.evaluation.documents import scored_text
from llm_jax.evaluation.perplexity import windows, without_end
from llm_jax.objectives import Window
from llm_jax.tokenizers.tokenizer import Tokenizer


class DocumentLoss(NamedTuple):
    """The scored tokens of one document.

    Attributes:
        number: of the document in its split, from 0 on.
        before: int32 [1], the token that the first one is predicted from; [0] of an empty document.
        ids: int32 [n], the tokens that something predicts, without a closing ``</s>``.
        losses: float32 [n], nats of each.
        words: of their text.
        bytes: of their text, in UTF-8.
    """

    number: int
    before: np.ndarray
    ids: np.ndarray
    losses: np.ndarray
    words: int
    bytes: int

    @property
    def loss(self) -> float:
        """The sum of the losses, nats."""
        return float(self.losses.sum(dtype=np.float64))


def document_losses(
    run: Run,
    tokenizer: Tokenizer,
    documents: Iterable[np.ndarray],
    *,
    context: int,
    stride: int,
    batch_size: int,
) -> Iterator[DocumentLoss]:
    """The losses of each document, in windows as ``perplexity`` scores them.

    A document without a token to score has an empty result.

    Args:
        run: a model of the next token.
        tokenizer: of the model.
        documents: token ids of each.
        context: tokens of a window.
        stride: tokens newly scored in each further window.
        batch_size: windows scored at once.
    """
    config = run.config.model
    scorer = Scorer(
        run.model,
        run.params,
        run.mesh,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
    )
    scored: dict[int, list[np.ndarray]] = {}
    rows: dict[int, np.ndarray] = {}
    waiting: list[tuple[int, Window]] = []

    def score_batch() -> None:
        some = waiting[:batch_size]
        del waiting[:batch_size]
        found = scorer.nll([window.tokens.tolist() for _, window in some])
        for (index, window), nll in zip(some, found, strict=True):
            scored[index].append(nll[-window.scored :])

    def complete() -> Iterator[DocumentLoss]:
        # Windows are scored in order: every document before the first that waits is complete.
        waits = waiting[0][0] if waiting else None
        while rows and (first := next(iter(rows))) != waits:
            yield _of_document(first, rows.pop(first), scored.pop(first), tokenizer)

    for index, document in enumerate(documents):
        rows[index] = without_end(document, tokenizer.eos_id)
        scored[index] = []
        waiting += [(index, each) for each in windows(rows[index], context, stride)]
        while len(waiting) >= batch_size:
            score_batch()
        yield from complete()
    while waiting:
        score_batch()
    yield from complete()


def _of_document(
    index: int, row: np.ndarray, parts: list[np.ndarray], tokenizer: Tokenizer
) -> DocumentLoss:
    losses = np.concatenate([np.zeros(0, np.float32), *parts])
    words, size = scored_text(row, tokenizer) if len(losses) else (0, 0)
    return DocumentLoss(index, row[:1], row[1:], losses, words, size)
