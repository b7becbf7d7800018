"""Vectors of texts: the mean of a text's hidden states, or the output of the model's pooler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.config import ModelConfig
from llm_jax.config.support import refuse
from llm_jax.decode.finite import cause
from llm_jax.decode.row_batches import of_rows
from llm_jax.models import row_vectors
from llm_jax.ranges import Count, checked
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

Pooling = Literal["mean", "first", "last", "model"]


@checked
def vectors(
    run: Run,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    normalize: bool = True,
    batch_size: Count = 32,
    pooling: Pooling = "mean",
) -> np.ndarray:
    """The vector of each text.

    Args:
        run: a model of one stack, on any mesh.
        tokenizer: the model's.
        texts: any number; each has from 1 token to as many as the model's context.
        normalize: scale each vector to length 1.
        batch_size: texts computed together; a batch is padded to a multiple of the ways that the
            mesh splits rows.
        pooling: ``mean`` is the mean of the last hidden states over a text's tokens, including
            those that the tokenizer adds (Reimers & Gurevych 2019, section 3); ``first`` and
            ``last`` are the hidden state of that token; ``model`` is the model's own pooler
            (``model.pooler``).

    Returns:
        float32 [number of texts, D].

    Raises:
        ConfigError: a text that is empty, too long or has ids that the model does not have; a
            model of two stacks; pooling ``model`` of a model without a pooler.
        NonFiniteError: a vector is NaN or infinite.
    """
    rows = encoder_ids(tokenizer, texts)
    return vectors_of_rows(
        run, texts, rows, normalize=normalize, batch_size=batch_size, pooling=pooling
    )


def vectors_of_rows(
    run: Run,
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],
    *,
    normalize: bool,
    batch_size: int,
    pooling: Pooling,
) -> np.ndarray:
    """``vectors`` of texts that are token ids already; errors name the text."""
    m = run.config.model
    refuse(m, "embed", "embed")
    for text, row in zip(texts, rows, strict=True):
        _check_fits(text, row, m)
    to_vectors = _to_vectors(run, pooling)
    out = np.zeros((len(rows), m.embed_dim), np.float32)
    for number, vector in enumerate(of_rows(run, rows, to_vectors, batch_size=batch_size)):
        out[number] = vector
    finite = np.isfinite(out).all(axis=1)
    if not finite.all():
        text = texts[int(np.argmin(finite))]
        raise NonFiniteError(f"the vector of text {text[:40]!r} is not finite; {cause(run.params)}")
    return out / np.linalg.norm(out, axis=1, keepdims=True) if normalize else out


def _check_fits(text: str, ids: Sequence[int], config: ModelConfig) -> None:
    """Raises ConfigError unless the model can read the text."""
    if not 0 < len(ids) <= config.max_length:
        raise ConfigError(
            f"text {text[:40]!r} has {len(ids)} tokens; it must have from 1 to model.max_length"
            f" {config.max_length}"
        )
    if max(ids) >= config.vocab_size:
        raise ConfigError(
            f"text {text[:40]!r} has the token id {max(ids)}; this model has the ids 0 to"
            f" {config.vocab_size - 1}"
        )


def _to_vectors(run: Run, pooling: Pooling) -> Callable[[Params, Batch], jax.Array]:
    config = run.config.model

    @jax.jit
    def to_vectors(params: Params, batch: Batch) -> jax.Array:
        hidden = run.model.apply(params, batch).hidden
        return row_vectors(config, params, hidden, batch.loss_mask, pooling)

    return to_vectors
