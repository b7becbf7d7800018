"""Cached decoding against the full forward pass, on the same parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import padded_rows
from llm_jax.decode.programs import decode_step, read, step_over_switch
from llm_jax.models import Model, rows_of
from llm_jax.types import Batch, NonFiniteError, Params, Tokens

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
# Cached decoding and the full pass each round, and the largest of many positions is compared.
ROUNDINGS = 4


class Parity(NamedTuple):
    """The largest difference of log-probabilities.

    Attributes:
        difference: nats.
        row: where it was.
        position: where it was.
        compared: number of positions that were compared.
    """

    difference: float
    row: int
    position: int
    compared: int


def check_parity(
    model: Model,
    params: Params,
    rows: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    encoder_rows: Sequence[Sequence[int]] | None = None,
) -> Parity:
    """Compares prefill and decode steps with one full forward pass.

    All log-probabilities of every token after each prompt are compared. A model whose rotations
    change at a length (``ModelConfig.rope_switch``) is compared with two forward passes: one of the
    rows up to there, and one of the whole rows.

    Args:
        model: the model.
        params: its parameters.
        rows: token ids of each row, all in one batch; their lengths may differ.
        prompt_lengths: of each row, less than its length.
        encoder_rows: what the encoder reads for each row, where the model has one.

    Raises:
        NonFiniteError: either side has a NaN or an infinity; the message names the row, the
            position and the parameter.
    """
    prompts = np.array(prompt_lengths, np.int32)
    tokens, lengths = _padded(rows)
    T = tokens.shape[1]
    encoder = _encoder(encoder_rows)
    full = _full(model, params, tokens, lengths, encoder)
    worst = Parity(0.0, 0, 0, 0)
    steps = _cached_steps(model, params, tokens, prompts, encoder)
    for n, logits in zip(range(T - int(prompts.min())), steps):
        where = prompts + n - 1
        compare = where + 1 < lengths
        expected = jnp.take_along_axis(full, jnp.minimum(where, T - 1)[:, None, None], axis=1)[:, 0]
        gaps = np.abs(np.asarray(jax.nn.log_softmax(logits) - expected)).max(axis=1)
        gap = np.where(compare, gaps, 0)
        _check_finite(gap, where, params)
        row = int(gap.argmax())
        compared = worst.compared + int(compare.sum())
        worst = worst._replace(compared=compared)
        if gap[row] > worst.difference:
            worst = Parity(float(gap[row]), row, int(where[row]), compared)
    return worst


def _cached_steps(
    model: Model,
    params: Params,
    tokens: np.ndarray,
    prompts: np.ndarray,
    encoder: Tokens | None,
) -> Iterator[Array]:
    """Logits [B, V] after each row's prompt, and then after each further token of the rows."""
    B, T = tokens.shape
    switch = min(model.config.rope_switch, T)
    room = {} if encoder is None else {"encoder_length": encoder.ids.shape[1]}
    cache = model.init_cache(B, T + int(prompts.max()), **room)
    first = jax.jit(partial(read, model))
    step = jax.jit(partial(decode_step, model))
    over_switch = jax.jit(partial(step_over_switch, model))
    begun = _batch(tokens[:, : prompts.max()], prompts)._replace(encoder=encoder)
    logits, cache = first(params, begun, cache)
    for at in itertools.count():
        yield logits
        where = prompts + at
        following = np.take_along_axis(tokens, np.minimum(where, T - 1)[:, None], axis=1)[:, 0]
        if 0 < switch < T and np.any(where == switch):
            logits, cache = over_switch(params, following, cache, tokens[:, : switch + 1])
        else:
            logits, cache = step(params, following, cache)


def measured_rounding(
    model: Model,
    params: Params,
    rows: Sequence[Sequence[int]],
    dtype: str,
    encoder_rows: Sequence[Sequence[int]] | None = None,
) -> float:
    """How far rounding in ``dtype`` moves the log-probabilities of this model on these rows.

    This is the largest change, in nats, when every parameter moves at random by at most one unit in
    the last place of ``dtype``. Sums in another order differ by as much; for a model with large
    logits or many layers that is more than ``TOLERANCE``.

    Args:
        model: the model.
        params: its parameters.
        rows: token ids of each row.
        dtype: type of the computation.
        encoder_rows: what the encoder reads for each row, where the model has one.
    """
    tokens, lengths = _padded(rows)
    encoder = _encoder(encoder_rows)
    unit = float(jnp.finfo(dtype).eps)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [
        leaf * (1 + jax.random.uniform(key, leaf.shape, leaf.dtype, minval=-unit, maxval=unit))
        for leaf, key in zip(leaves, keys)
    ]
    before = _full(model, params, tokens, lengths, encoder)
    after = _full(model, jax.tree.unflatten(structure, moved), tokens, lengths, encoder)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    return float(np.abs(np.asarray(after - before)).max(axis=2)[real].max())


def _encoder(encoder_rows: Sequence[Sequence[int]] | None) -> Tokens | None:
    """What the encoder reads of a batch; None without ``encoder_rows``."""
    return None if encoder_rows is None else _batch(*_padded(encoder_rows)).inputs


def _batch(tokens: np.ndarray, lengths: np.ndarray) -> Batch:
    return rows_of(jnp.asarray(tokens), jnp.asarray(lengths))


def _full(
    model: Model, params: Params, tokens: np.ndarray, lengths: np.ndarray, encoder: Tokens | None
) -> Array:
    """Log-probabilities [B, T, V] without a cache; with the rotations of a row that ends there."""

    @jax.jit
    def forward(params: Params, batch: Batch) -> Array:
        return jax.nn.log_softmax(model.logits(params, model.apply(params, batch).hidden))

    def up_to(end: int) -> Array:
        rows = _batch(tokens[:, :end], np.minimum(lengths, end))
        return forward(params, rows._replace(encoder=encoder))

    T = tokens.shape[1]
    switch = model.config.rope_switch
    whole = up_to(T)
    if not 0 < switch < T:
        return whole
    return jnp.concatenate([up_to(switch), whole[:, switch:]], axis=1)


def _check_finite(gap: np.ndarray, positions: np.ndarray, params: Params) -> None:
    bad = ~np.isfinite(gap)
    if bad.any():
        row = int(bad.argmax())
        raise NonFiniteError(
            f"row {row}, position {positions[row]}: log-probabilities of cached decoding or of the "
            f"full forward pass are not finite; {cause(params)}"
        )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    return padded_rows([np.asarray(row) for row in rows], max(map(len, rows)))
