"""Vectors of texts, of a model of one stack: the mean over a text's tokens, or the model's own
pooler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.decode.finite import cause
from llm_jax.models import pooled, rows_of
from llm_jax.ops import mean_pool
from llm_jax.ranges import Count, checked
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

Pooling = Literal["mean", "model"]
# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32


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
        run: a model of one stack.
        tokenizer: the model's.
        texts: each with at least one token, and at most as many as the model's context.
        normalize: scale each vector to length 1.
        batch_size: texts computed together.
        pooling: ``mean`` is the mean of the last hidden states over a text's tokens, those that the
            tokenizer puts around it included (Reimers & Gurevych 2019, section 3); ``model`` is the
            model's own pooler (``model.pooler``).

    Returns:
        float32 [number of texts, D].

    Raises:
        ConfigError: a text that is empty, too long or has ids that the model does not have; a
            model of two stacks; pooling ``model`` of a model without a pooler.
        NonFiniteError: a vector is NaN or infinite.
    """
    m = run.config.model
    if m.encoder:
        raise ConfigError(
            "model.encoder is 'on': vectors of texts are of models of one"
            " stack; use an encoder alone"
        )
    ids = encoder_ids(tokenizer, texts)
    for text, row in zip(texts, ids):
        if not 0 < len(row) <= m.max_length:
            raise ConfigError(
                f"text {text[:40]!r} has {len(row)} tokens; it must have from 1 to model.max_length"
                f" {m.max_length}"
            )
        if max(row) >= m.vocab_size:
            raise ConfigError(
                f"text {text[:40]!r} has the token id {max(row)}; this model has the ids 0 to"
                f" {m.vocab_size - 1}"
            )

    to_vectors = _to_vectors(run, pooling)
    out = np.zeros((len(texts), m.embed_dim), np.float32)
    # Texts of like length together have the least padding.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        with jax.set_mesh(run.mesh):
            out[rows] = to_vectors(run.params, _padded([ids[i] for i in rows], m.max_length))
    if not np.isfinite(out).all():
        text = texts[int(np.argmax(~np.isfinite(out).all(axis=1)))]
        raise NonFiniteError(f"the vector of text {text[:40]!r} is not finite; {cause(run.params)}")
    return out / np.linalg.norm(out, axis=1, keepdims=True) if normalize else out


def _padded(rows: Sequence[Sequence[int]], longest: int) -> Batch:
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros(
        (len(rows), min(-(-int(lengths.max()) // _BUCKET) * _BUCKET, longest)), np.int32
    )
    for padded, row in zip(tokens, rows):
        padded[: len(row)] = row
    return rows_of(jax.numpy.asarray(tokens), jax.numpy.asarray(lengths))


def _to_vectors(run: Run, pooling: Pooling) -> Callable[[Params, Batch], jax.Array]:
    config = run.config.model
    if pooling not in ("mean", "model"):
        raise ConfigError(f"pooling is {pooling!r}; it must be mean or model")
    if pooling == "model" and config.pooler is None:
        raise ConfigError(
            "pooling is 'model', and model.pooler is none: the model has no pooler; use mean"
        )

    @jax.jit
    def to_vectors(params: Params, batch: Batch) -> jax.Array:
        hidden = run.model.apply(params, batch).hidden
        if pooling == "mean":
            return mean_pool(hidden, batch.loss_mask)
        return pooled(config, params, hidden, batch.loss_mask)

    return to_vectors
