"""``llm-jax embed``: vectors of texts, by the mean over their tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from llm_jax.checkpoints.open_run import Run, open_run
from llm_jax.decode.finite import cause
from llm_jax.models import rows_of
from llm_jax.ops import mean_pool
from llm_jax.ranges import Count, Natural, checked
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32


@checked
def embed(
    run: Path,
    text: tuple[str, ...] = (),
    normalize: bool = True,
    batch_size: Count = 32,
    step: Natural | None = None,
) -> None:
    """Print a JSON line for each text, with its vector: the mean of the model's last hidden states
    (sentence embedding).

    Args:
        run: folder of the run or converted model, such as a BERT or a sentence encoder.
        text: one or more texts.
        normalize: scale each vector to length 1, so that the product of two is the cosine of their
            angle.
        batch_size: texts computed together.
        step: which checkpoint of a run; the newest if not given.
    """
    if not text:
        raise ConfigError("text is empty; give --text one or more texts")
    opened = open_run(run, step)
    for t, vector in zip(
        text,
        vectors(
            opened,
            open_tokenizer(run / "tokenizer"),
            text,
            normalize=normalize,
            batch_size=batch_size,
        ),
    ):
        print(json.dumps({"text": t, "vector": vector.tolist()}, ensure_ascii=False))


@checked
def vectors(
    run: Run,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    normalize: bool = True,
    batch_size: Count = 32,
) -> np.ndarray:
    """float32 [number of texts, D]: of each text the mean over its tokens, those that the tokenizer
    puts around it included (Reimers & Gurevych 2019, section 3).

    Raises ConfigError for a text without tokens, longer than the model's context or with ids that
    it does not have, and for a model of two stacks; NonFiniteError for a vector that is NaN or
    infinite.
    """
    m = run.config.model
    if m.encoder_layers:
        raise ConfigError(
            f"model.encoder_layers is {m.encoder_layers}: vectors of texts are of models of one"
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

    @jax.jit
    def means(params: Params, batch: Batch) -> jax.Array:
        return mean_pool(run.model.apply(params, batch).hidden, batch.loss_mask)

    out = np.zeros((len(texts), m.embed_dim), np.float32)
    # Texts of like length together have the least padding.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        with jax.set_mesh(run.mesh):
            out[rows] = means(run.params, _padded([ids[i] for i in rows], m.max_length))
    if not np.isfinite(out).all():
        row = int(np.argmax(~np.isfinite(out).all(axis=1)))
        raise NonFiniteError(
            f"the vector of text {texts[row][:40]!r} is not finite; {cause(run.params)}"
        )
    return out / np.linalg.norm(out, axis=1, keepdims=True) if normalize else out


def _padded(rows: Sequence[Sequence[int]], longest: int) -> Batch:
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros(
        (len(rows), min(-(-int(lengths.max()) // _BUCKET) * _BUCKET, longest)), np.int32
    )
    for padded, row in zip(tokens, rows):
        padded[: len(row)] = row
    return rows_of(jax.numpy.asarray(tokens), jax.numpy.asarray(lengths))
