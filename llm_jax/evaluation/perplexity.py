"""Perplexity per token, word and byte, and bits per byte, over strided windows.

Every token is scored once. With nll the sum over all scored tokens, and words and bytes those of
the scored tokens' text:

- perplexity = exp(nll / tokens), word perplexity = exp(nll / words),
  byte perplexity = exp(nll / bytes);
- bits per byte = nll / (bytes · ln 2), the only figure that can be compared across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax.config import Config
from llm_jax.evaluation.metrics import sum_metrics
from llm_jax.models import Model
from llm_jax.objectives import Window
from llm_jax.objectives.next_token import NEXT_TOKEN
from llm_jax.training.metrics import perplexity_per
from llm_jax.training.step import pick_loss_chunk
from llm_jax.types import ConfigError, DataError, Params


class Perplexity(NamedTuple):
    """Totals over a set of documents, and how they were scored.

    Attributes:
        nll: nats, of all scored tokens.
        tokens: number of scored tokens.
        words: of the text of the scored tokens.
        bytes: of the text of the scored tokens.
        context: tokens of a window.
        stride: tokens newly scored in each further window.
        bos: whether every document is read after ``<s>``. Without it nothing predicts a document's
            first token, which is not scored.
    """

    nll: float
    tokens: int
    words: int
    bytes: int
    context: int
    stride: int
    bos: bool

    @property
    def loss(self) -> float:
        return self.nll / self.tokens

    def summary(self) -> dict[str, float | int | bool | None]:
        """All figures by name.

        A figure is None where it is too large for a float or its divisor is 0.
        """
        return {
            "loss": self.loss,
            "perplexity": perplexity_per(self.nll, self.tokens),
            "word_perplexity": perplexity_per(self.nll, self.words),
            "byte_perplexity": perplexity_per(self.nll, self.bytes),
            "bits_per_byte": self.nll / (self.bytes * math.log(2)) if self.bytes else None,
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "context": self.context,
            "stride": self.stride,
            "bos": self.bos,
        }


def windows(document: np.ndarray, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``context`` predictions that score each token after the first once.

    The first window scores all of its tokens. Each later one moves by ``stride`` and scores only
    the new tokens, so that these are predicted from at least ``context - stride`` others.
    """
    predictions = len(document) - 1
    done = 0
    while done < predictions:
        end = min(predictions, context if done == 0 else done + stride)
        start = max(0, end - context)
        yield Window(document[start : end + 1], end - done)
        done = end


def perplexity(
    model: Model,
    params: Params,
    mesh: Mesh,
    documents: Iterable[np.ndarray],
    *,
    words: int,
    text_bytes: int,
    context: int,
    stride: int,
    batch_size: int,
    vocab_size: int,
    bos: bool,
    eos_id: int,
) -> Perplexity:
    """Scores documents of token ids.

    A closing ``</s>`` (``eos_id``) is not text and is not scored.

    Args:
        model: a causal model of one stack.
        params: its parameters.
        mesh: where it runs.
        documents: token ids of each document.
        words: of the text of the scored tokens, see ``documents.unscored_text``.
        text_bytes: of the text of the scored tokens.
        context: tokens of a window.
        stride: tokens newly scored in each further window.
        batch_size: windows scored at once.
        vocab_size: number of ids of the model.
        bos: the documents begin with ``<s>``, which is read and not scored; without it each
            document's first token is not scored, since nothing predicts it.
        eos_id: id of ``</s>``.

    Raises:
        ConfigError: a stride outside 1 … context, a context longer than the model's, or no document
            with a token to score.
        DataError: an id that the model does not have.
        NonFiniteError: the loss is NaN or infinite.
    """
    if not 1 <= stride <= context:
        raise ConfigError(f"stride is {stride}; it must be from 1 to the context, {context}")
    # Raises ConfigError for a context longer than the model's.
    jax.eval_shape(partial(model.init_cache, 1, context))
    text = (without_end(d, eos_id) for d in _checked(documents, vocab_size))
    scored = (window for document in text for window in windows(document, context, stride))
    assert NEXT_TOKEN.pack_windows is not None
    batches = NEXT_TOKEN.pack_windows(scored, context, batch_size)
    # Terms that train.z_loss and label_smoothing add are not in the metric, so defaults serve.
    chunk = pick_loss_chunk(batch_size * context, vocab_size)
    loss = NEXT_TOKEN.make_loss(model, Config(), chunk)
    sums = sum_metrics(NEXT_TOKEN, loss, params, mesh, batches)
    return Perplexity(
        nll=sums.loss_sum,
        tokens=int(sums.loss_weight),
        words=words,
        bytes=text_bytes,
        context=context,
        stride=stride,
        bos=bos,
    )


def without_end(document: np.ndarray, eos_id: int) -> np.ndarray:
    """``document`` without the ``</s>`` that closes it, if one does."""
    if len(document) and document[-1] == eos_id:
        return document[:-1]
    return document


def _checked(documents: Iterable[np.ndarray], vocab_size: int) -> Iterator[np.ndarray]:
    """Yields the documents after checking their ids.

    Compiled code would silently replace an id that the model does not have.

    Raises:
        DataError: a document has such an id.
    """
    for number, document in enumerate(documents):
        if len(document) and not 0 <= document.min() <= document.max() < vocab_size:
            raise DataError(
                f"document {number} has token ids from {document.min()} to {document.max()}, and"
                f" the model has the ids 0 to {vocab_size - 1}; prepare the text with the model's"
                " own tokenizer"
            )
        yield document
