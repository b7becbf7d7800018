"""Cached decoding against the full forward pass, on the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.decode.finite import cause
from llm_jax.decode.programs import decode_step, read
from llm_jax.models import Model, rows_of
from llm_jax.types import NonFiniteError, Params

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


class Parity(NamedTuple):
    """Largest difference of log-probabilities (nats), where it was, and how many positions were compared."""

    difference: float
    row: int
    position: int
    compared: int


def check_parity(
    model: Model, params: Params, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int],
    encoder_rows: Sequence[Sequence[int]] | None = None,
) -> Parity:
    """Log-probabilities of every token after each prompt: prefill and decode steps against one full forward pass.

    Rows may have different lengths and prompts, all in one batch; each prompt is shorter than its row. encoder_rows: what the encoder
    reads for each row, where the model has one.

    Raises NonFiniteError, naming the row, the position and the parameter, where either side has a NaN or an infinity.
    """
    prompts = np.array(prompt_lengths, np.int32)
    tokens, lengths = _padded(rows)
    B, T = tokens.shape
    read_too: dict = {}
    if encoder_rows is not None:
        encoded = rows_of(*_padded(encoder_rows))
        read_too = {"encoder_tokens": encoded.tokens, "encoder_segment_ids": encoded.segment_ids}
    batch = rows_of(tokens, lengths)._replace(**read_too)
    full = jax.jit(lambda p, b: jax.nn.log_softmax(model.logits(p, model.apply(p, b).hidden)))(params, batch)

    cache = model.init_cache(B, T + int(prompts.max()))
    first = jax.jit(partial(read, model))
    step = jax.jit(partial(decode_step, model))
    logits, cache = first(params, rows_of(tokens[:, : prompts.max()], prompts)._replace(**read_too), cache)
    worst = Parity(0.0, 0, 0, 0)
    for n in range(T - int(prompts.min())):
        where = prompts + n - 1
        compare = where + 1 < lengths
        expected = jnp.take_along_axis(full, jnp.minimum(where, T - 1)[:, None, None], axis=1)[:, 0]
        gaps = np.asarray(jnp.max(jnp.abs(jax.nn.log_softmax(logits) - expected), axis=-1))
        gap = np.where(compare, gaps, 0)
        if not np.isfinite(gap).all():
            row = int(np.argmax(~np.isfinite(gap)))
            raise NonFiniteError(
                f"row {row}, position {where[row]}: log-probabilities of cached decoding or of the full forward pass are not finite; "
                f"{cause(params)}"
            )
        row = int(gap.argmax())
        compared = worst.compared + int(compare.sum())
        worst = worst._replace(compared=compared)
        if gap[row] > worst.difference:
            worst = Parity(float(gap[row]), row, int(where[row]), compared)
        following = np.take_along_axis(tokens, np.minimum(where + 1, T - 1)[:, None], axis=1)[:, 0]
        logits, cache = step(params, following, cache)
    return worst


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows as tokens [B, T], padded on the right, and their lengths [B]."""
    lengths = np.array([len(r) for r in rows], np.int32)
    tokens = np.zeros((len(rows), int(lengths.max())), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return tokens, lengths
