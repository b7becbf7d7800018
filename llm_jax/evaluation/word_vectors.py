"""Vectors of words in a model's input embeddings, as WEAT asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.ops.weights import take_rows
from llm_jax.tokenizers.tokenizer import Tokenizer


def word_vectors(run: Run, tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean over a word's tokens of their input embeddings, float32 [D], by word.

    Args:
        run: the model.
        tokenizer: of the model; of an encoder, what the encoder reads.
        words: each is encoded as a text of its own. A word without tokens has no vector.
    """
    reader = tokenizer.reader or tokenizer
    ids = {word: reader.encode(word) for word in words}
    known = {word: of for word, of in ids.items() if of}
    flat = np.array([id for of in known.values() for id in of], np.int32)
    table = run.params["embed"]["embedding"]
    rows = np.asarray(take_rows(table, jnp.asarray(flat), jnp.float32))
    ends = np.cumsum([len(of) for of in known.values()])
    parts = np.split(rows, ends[:-1]) if known else []
    return {word: part.mean(axis=0) for word, part in zip(known, parts, strict=True)}
