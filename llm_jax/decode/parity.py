"""Cached decoding against the full forward pass, on the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.decode.generate import decode_step, prefill
from llm_jax.models import Model
from llm_jax.types import Batch, Params

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


class Parity(NamedTuple):
    """Largest difference of log-probabilities (nats), where it was, and how many positions were compared."""

    difference: float
    row: int
    position: int
    compared: int


def check_parity(model: Model, params: Params, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> Parity:
    """Log-probabilities of every token after each prompt: prefill and decode steps against one full forward pass.

    Rows may have different lengths and prompts, all in one batch; each prompt is shorter than its row.
    """
    lengths, prompts = np.array([len(r) for r in rows]), np.array(prompt_lengths, np.int32)
    B, T = len(rows), int(lengths.max())
    tokens = np.zeros((B, T), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    at = np.broadcast_to(np.arange(T, dtype=np.int32)[None], (B, T))
    real = at < lengths[:, None]
    batch = Batch(tokens, tokens, real, real.astype(np.int32), at)
    full = jax.jit(lambda p, b: jax.nn.log_softmax(model.logits(p, model.apply(p, b).hidden)))(params, batch)

    cache = model.init_cache(B, T + int(prompts.max()))
    first = jax.jit(partial(prefill, model))
    step = jax.jit(partial(decode_step, model))
    logits, cache = first(params, tokens[:, : prompts.max()], prompts, cache)
    worst = Parity(0.0, 0, 0, 0)
    for n in range(T - int(prompts.min())):
        where = prompts + n - 1
        compare = where + 1 < lengths
        expected = jnp.take_along_axis(full, jnp.minimum(where, T - 1)[:, None, None], axis=1)[:, 0]
        gap = np.max(np.abs(np.asarray(jax.nn.log_softmax(logits) - expected)), axis=1) * compare
        row = int(gap.argmax())
        compared = worst.compared + int(compare.sum())
        worst = worst._replace(compared=compared)
        if gap[row] > worst.difference:
            worst = Parity(float(gap[row]), row, int(where[row]), compared)
        following = np.take_along_axis(tokens, np.minimum(where + 1, T - 1)[:, None], axis=1)[:, 0]
        logits, cache = step(params, following, cache)
    return worst
