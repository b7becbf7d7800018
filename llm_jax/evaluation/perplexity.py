"""Perplexity per token, word and byte, and bits per byte, over strided windows.

Every token is scored once. With nll the sum over all scored tokens, and words and bytes those of
the scored tokens' text:

- perplexity = exp(nll / tokens), word perplexity = exp(nll / words),
  byte perplexity = exp(nll / bytes);
- bits per byte = nll / (bytes · ln 2), the only figure that can be compared across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax import sharding
from llm_jax.decode.finite import cause
from llm_jax.models import Model
from llm_jax.objectives.token_loss import token_loss
from llm_jax.progress import progress
from llm_jax.training.metrics import perplexity_per
from llm_jax.training.step import make_eval_step, pick_loss_chunk
from llm_jax.types import Batch, ConfigError, DataError, NonFiniteError, Params, Tokens


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


class Window(NamedTuple):
    """A stretch of a document.

    Attributes:
        tokens: int32 [n + 1].
        scored: how many of the n predictions count, the last ones.
    """

    tokens: np.ndarray
    scored: int


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


def pack(items: Iterable[Window], context: int, rows: int) -> Iterator[Batch]:
    """Packs windows into batches [rows, context], each window a segment of its own."""
    batch = _empty_batch(rows, context)
    row = 0
    at = 0
    segment = 1
    for tokens, scored in items:
        n = len(tokens) - 1
        if at + n > context:
            row += 1
            at = 0
            segment = 1
        if row == rows:
            yield batch
            batch = _empty_batch(rows, context)
            row = 0
        place = (row, slice(at, at + n))
        batch.inputs.ids[place] = tokens[:-1]
        batch.targets[place] = tokens[1:]
        batch.inputs.segment_ids[place] = segment
        batch.inputs.positions[place] = np.arange(n)
        batch.loss_mask[row, at + n - scored : at + n] = True
        at += n
        segment += 1
    if batch.inputs.segment_ids.any():
        yield batch


def _empty_batch(rows: int, context: int) -> Batch:
    tokens, targets, segment_ids, positions = (
        np.zeros((rows, context), np.int32) for _ in range(4)
    )
    loss_mask = np.zeros((rows, context), bool)
    return Batch(
        inputs=Tokens(tokens, segment_ids, positions), targets=targets, loss_mask=loss_mask
    )


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
    order: Callable[[Batch], Batch] | None = None,
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
        order: reorders the positions of a batch (``models.zigzag_order``); None keeps their order.

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
    text = (d[:-1] if len(d) and d[-1] == eos_id else d for d in _checked(documents, vocab_size))
    batches = pack((w for d in text for w in windows(d, context, stride)), context, batch_size)
    sums = _sums(model, params, mesh, batches, vocab_size, order=order)
    return Perplexity(sums["nll"], int(sums["tokens"]), words, text_bytes, context, stride, bos)


def objective_loss(
    model: Model,
    params: Params,
    mesh: Mesh,
    batches: Iterable[Batch],
    vocab_size: int,
    *,
    order: Callable[[Batch], Batch] | None = None,
) -> dict[str, float | int | None]:
    """Loss (nats per token), perplexity and accuracy of the tokens that batches count.

    The perplexity is None where it is too large for a float. ``order`` is as in ``perplexity``.

    Raises:
        ConfigError: the batches count no token.
        NonFiniteError: the loss is NaN or infinite.
    """
    sums = _sums(model, params, mesh, batches, vocab_size, order=order)
    return {
        "loss": sums["nll"] / sums["tokens"],
        "perplexity": perplexity_per(sums["nll"], sums["tokens"]),
        "accuracy": sums["correct"] / sums["tokens"],
        "tokens": int(sums["tokens"]),
    }


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


def _sums(
    model: Model,
    params: Params,
    mesh: Mesh,
    batches: Iterable[Batch],
    vocab_size: int,
    *,
    order: Callable[[Batch], Batch] | None,
) -> dict[str, float]:
    """Sums of nll (nats), correct predictions and tokens over batches."""
    sums = {"nll": 0.0, "correct": 0.0, "tokens": 0.0}
    step = None
    with jax.set_mesh(mesh), progress("evaluating", None, "batch") as bar:
        for number, batch in enumerate(batches):
            if step is None:
                chunk = pick_loss_chunk(batch.inputs.ids.size, vocab_size)
                loss = token_loss(model, chunk, order=order)
                step = jax.jit(make_eval_step(loss))
            out = jax.device_get(step(params, sharding.device_put_batch(batch, mesh)))
            nll, tokens = out["loss"]
            if not math.isfinite(nll):
                raise NonFiniteError(
                    f"batch {number} of the evaluation: the loss is {nll}; {cause(params)}"
                )
            sums["nll"] += float(nll)
            sums["tokens"] += float(tokens)
            sums["correct"] += float(out["accuracy"].sum)
            bar.advance(1)
    if not sums["tokens"]:
        raise ConfigError(
            "there is no token to score: every document is empty; choose another split"
        )
    return sums
