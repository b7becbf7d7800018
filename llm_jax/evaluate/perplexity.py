"""Perplexity per token, word and byte, and bits per byte, with strided windows in which every token is scored once.

Definitions: token ppl = exp(nll / tokens), word ppl = exp(nll / words), byte ppl = exp(nll / bytes), bits per byte =
nll / (bytes · ln 2), where nll is the sum over all scored tokens. Bits per byte is the one figure that can be compared
across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax import sharding
from llm_jax.models import Model
from llm_jax.progress import progress
from llm_jax.training.step import make_eval_step, make_loss, pick_loss_chunk
from llm_jax.types import Batch, ConfigError, Params


class Perplexity(NamedTuple):
    """Totals over a set of documents, and how they were scored. ``bos``: every document is read after ``<s>``."""

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

    def summary(self) -> dict[str, float | int | bool]:
        """Every figure under its name; perplexities too large for a float are infinite."""
        per = lambda n: math.exp(self.nll / n) if self.nll / n < 700 else math.inf  # noqa: E731
        return {
            "loss": self.loss,
            "perplexity": per(self.tokens),
            "word_perplexity": per(self.words),
            "byte_perplexity": per(self.bytes),
            "bits_per_byte": self.nll / (self.bytes * math.log(2)),
            **{name: getattr(self, name) for name in ("tokens", "words", "bytes", "context", "stride", "bos")},
        }


class Window(NamedTuple):
    """tokens: int32 [n + 1], a stretch of a document; the last ``scored`` of its n predictions count."""

    tokens: np.ndarray
    scored: int


def windows(document: np.ndarray, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``context`` predictions that score each token of ``document`` after its first exactly once.

    The first window scores all of its tokens; each later one moves on by ``stride`` and scores only what is new, so that
    every token but the first window's is predicted from at least ``context - stride`` others.
    """
    predictions, done = len(document) - 1, 0
    while done < predictions:
        end = min(predictions, context if done == 0 else done + stride)
        start = max(0, end - context)
        yield Window(document[start : end + 1], end - done)
        done = end


def pack(items: Iterable[Window], context: int, rows: int) -> Iterator[Batch]:
    """Windows one after the other into batches [rows, context], each window a segment of its own."""

    def empty() -> Batch:
        ints = [np.zeros((rows, context), np.int32) for _ in range(4)]
        return Batch(ints[0], ints[1], np.zeros((rows, context), bool), ints[2], ints[3])

    batch, row, at, segment = empty(), 0, 0, 1
    for tokens, scored in items:
        n = len(tokens) - 1
        if at + n > context:
            row, at, segment = row + 1, 0, 1
        if row == rows:
            yield batch
            batch, row = empty(), 0
        place = (row, slice(at, at + n))
        batch.tokens[place], batch.targets[place] = tokens[:-1], tokens[1:]
        batch.segment_ids[place], batch.positions[place] = segment, np.arange(n)
        batch.loss_mask[row, at + n - scored : at + n] = True
        at, segment = at + n, segment + 1
    if batch.segment_ids.any():
        yield batch


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
    """Scores documents of token ids; a closing ``</s>`` (``eos_id``) is no text and is not scored.

    bos: the documents begin with ``<s>``, which is read and not scored; without it each document's first token is not
    scored, since nothing predicts it. words, text_bytes: of the documents' text. Raises ConfigError for a stride outside
    1 … context, or when no document has a token to score.
    """
    if not 1 <= stride <= context:
        raise ConfigError(f"stride is {stride}; it must be from 1 to the context, {context}")
    text = (d[:-1] if len(d) and d[-1] == eos_id else d for d in documents)
    batches = pack((w for d in text for w in windows(d, context, stride)), context, batch_size)
    sums = _sums(model, params, mesh, batches, vocab_size)
    return Perplexity(sums["nll"], int(sums["tokens"]), words, text_bytes, context, stride, bos)


def objective_loss(model: Model, params: Params, mesh: Mesh, batches: Iterable[Batch], vocab_size: int) -> dict[str, float | int]:
    """Loss (nats per token), perplexity and accuracy of the tokens that batches ask for. ConfigError when they ask for none."""
    sums = _sums(model, params, mesh, batches, vocab_size)
    loss = sums["nll"] / sums["tokens"]
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "accuracy": sums["correct"] / sums["tokens"], "tokens": int(sums["tokens"])}


def _sums(model: Model, params: Params, mesh: Mesh, batches: Iterable[Batch], vocab_size: int) -> dict[str, float]:
    sums, step = {"nll": 0.0, "correct": 0.0, "tokens": 0.0}, None
    with jax.set_mesh(mesh), progress("evaluating", None, "batch") as bar:
        for batch in batches:
            if step is None:
                step = jax.jit(make_eval_step(make_loss(model, pick_loss_chunk(batch.tokens.size, vocab_size), 0.0)))
            out = jax.device_get(step(params, sharding.device_put_batch(batch, mesh)))
            sums = {name: value + float(out[name]) for name, value in sums.items()}
            bar.advance(1)
    if not sums["tokens"]:
        raise ConfigError("there is no token to score: every document is empty; choose another split")
    return sums
