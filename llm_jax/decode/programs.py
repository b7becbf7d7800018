"""The steps of decoding as pure functions: reading prompts, and one more token, or several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.prompts import prefill_batch
from llm_jax.models import Model, rows_of
from llm_jax.types import Batch, Params, Tokens

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
BUCKET = 64


def await_allocation(state: Any) -> None:
    """Waits until the program that makes ``state`` has run, before another program takes it.

    Raises:
        RuntimeError: the device lacks memory for it. On CPU, the result of a program whose input
            could not be allocated may never come (jaxlib 0.10): waiting for it hangs.
    """
    jax.block_until_ready(state)


def prefill(
    model: Model, params: Params, tokens: Array, lengths: Array, cache: Any
) -> tuple[Array, Any]:
    """Reads prompts into an empty cache.

    In a model with an encoder, the encoder reads the prompts, and each row begins with the start
    token.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B, T], padded on the right.
        lengths: int [B], at least 1.
        cache: an empty cache.

    Returns:
        The logits [B, V] after each row's last token, and the cache; each row continues at its own
        length.
    """
    return read(model, params, prefill_batch(model.config, tokens, lengths), cache)


def read(model: Model, params: Params, batch: Batch, cache: Any) -> tuple[Array, Any]:
    """``prefill`` of a batch [B, T] that is padded on the right, with at least one token a row."""
    logits, _, cache = read_all(model, params, batch, cache)
    return logits, cache


def read_all(model: Model, params: Params, batch: Batch, cache: Any) -> tuple[Array, Array, Any]:
    """``read`` with the hidden states [B, T, D] of all tokens, between logits and cache."""
    out = model.apply(params, batch, cache, begin=True)
    last = jnp.sum(batch.inputs.segment_ids != 0, axis=1) - 1
    hidden = jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)
    return model.logits(params, hidden)[:, 0], out.hidden, out.cache


def extend(
    model: Model, params: Params, tokens: Array, counts: Array, cache: Any
) -> tuple[Array, Any]:
    """Appends up to T tokens to each row: part of a prompt, or a draft to verify.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B, T], padded on the right.
        counts: int [B], how many of them each row gets, 0 to T.
        cache: the cache; the caller keeps each row within its length.

    Returns:
        Hidden states [B, T, D], of which ``model.logits`` makes logits; and the written cache. The
        hidden states of padding mean nothing.
    """
    rows = rows_of(tokens, counts)
    positions = rows.inputs.positions + cache.length[:, None]
    batch = rows._replace(inputs=rows.inputs._replace(positions=positions))
    out = model.apply(params, batch, cache)
    return out.hidden, out.cache


def decode_step(model: Model, params: Params, tokens: Array, cache: Any) -> tuple[Array, Any]:
    """Reads one token of each row.

    The caller keeps each row's length below that of the cache: a token past the end overwrites the
    last slot. A row that passes ``model.config.rope_switch`` gets NaN; use ``step_over_switch`` for
    it.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B].
        cache: the cache.

    Returns:
        The logits [B, V] after the token, and the cache with the token.
    """
    one = jnp.ones_like(tokens)[:, None]
    batch = Batch(
        inputs=Tokens(tokens[:, None], one, cache.length[:, None]),
        targets=tokens[:, None],
        loss_mask=one.astype(bool),
    )
    out = model.apply(params, batch, cache)
    return model.logits(params, out.hidden)[:, 0], out.cache


def step_over_switch(
    model: Model, params: Params, tokens: Array, cache: Any, history: Array
) -> tuple[Array, Any]:
    """``decode_step`` where some rows pass ``model.config.rope_switch`` and are read again.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B].
        cache: the cache.
        history: int [B, T], each row's tokens up to and with this step's, padded on the right to
            more than ``model.config.rope_switch``; used for the rows that pass.
    """
    passes = cache.length == model.config.rope_switch
    lengths = jnp.where(passes, model.config.rope_switch + 1, 1)
    anew = prefill(model, params, history, lengths, cache)
    onward = decode_step(model, params, tokens, cache)

    def of_each_row(new: Array, old: Array) -> Array:
        return jnp.where(passes.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(of_each_row, anew, onward)


def padded(length: int, most: int) -> int:
    """``length`` rounded up to a multiple of ``BUCKET``, and at most ``most``."""
    return min(-(-length // BUCKET) * BUCKET, most)
