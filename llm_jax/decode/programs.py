"""The compiled programs of decoding: reading prompts, one step, and the loop that writes tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped

from llm_jax.decode.placement import place_cache
from llm_jax.decode.prompts import prefill_batch
from llm_jax.models import Model, rows_of
from llm_jax.ops.sampling import categorical, filter_logits, greedy, row_keys
from llm_jax.types import Batch, Params, Tokens

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
BUCKET = 64
NOT_FINITE = -1
"""What ``choose`` gives in place of a token where a row's logits are NaN or infinite."""


class Sampling(NamedTuple):
    """Settings of each row, arrays [B]. Another value does not compile the program again.

    Attributes:
        temperature: float32; 0 always takes the most likely token.
        top_k: int32; 0 is off.
        top_p: float32; 1 is off.
        min_p: float32; 0 is off.
        seed: uint32 [B, 2], the high and the low half of 64 bits.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    seed: Array


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
    out = model.apply(params, batch, cache, begin=True)
    last = jnp.sum(batch.inputs.segment_ids != 0, axis=1) - 1
    hidden = jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)
    return model.logits(params, hidden)[:, 0], out.cache


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


def choose(logits: Array, positions: Array, s: Sampling, order: str) -> Array:
    """The sampler: one token for each row.

    Args:
        logits: [B, V].
        positions: int [B], the position of the token in its row; enters the row's key.
        s: the settings.
        order: of the filters, a key of ``ops.sampling.ORDERS``.

    Returns:
        int32 [B]; ``NOT_FINITE`` for a row with a logit that is NaN or infinite.
    """

    def draw(logits: Array) -> Array:
        filtered = filter_logits(logits, s.temperature, s.top_k, s.top_p, s.min_p, order=order)
        return categorical(row_keys(s.seed, positions), filtered)

    token = jax.lax.cond(jnp.all(s.temperature == 0), greedy, draw, logits)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.where(finite, token, NOT_FINITE)


def first_token(
    model: Model,
    params: Params,
    tokens: Array,
    lengths: Array,
    s: Sampling,
    *,
    cache_length: int,
    order: str,
) -> tuple[Array, Any]:
    """Reads prompts into a new cache of ``cache_length`` tokens a row.

    Returns:
        The token [B] chosen after each prompt, and the cache.
    """
    begun = prefill_batch(model.config, tokens, lengths)
    encoder = {} if begun.encoder is None else {"encoder_length": begun.encoder.ids.shape[1]}
    cache = place_cache(model.init_cache(tokens.shape[0], cache_length, **encoder))
    logits, cache = read(model, params, begun, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


def next_token(
    model: Model, params: Params, token: Array, cache: Any, s: Sampling, *, order: str
) -> tuple[Array, Any]:
    """One decode step: the token [B] chosen after ``token`` [B], and the cache."""
    logits, cache = decode_step(model, params, token, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


class Steps(NamedTuple):
    """Compiled ``first_token`` and ``next_token`` of one model; the second donates its cache."""

    first: Wrapped
    next: Wrapped


def jit_steps(model: Model) -> Steps:
    """The two programs that decoding runs."""
    return Steps(
        jax.jit(partial(first_token, model), static_argnames=("cache_length", "order")),
        jax.jit(partial(next_token, model), static_argnames=("order",), donate_argnames=("cache",)),
    )


class Written(NamedTuple):
    """What ``write_tokens`` returns.

    Attributes:
        tokens: int32 [B, max_new_tokens].
        count: int32 [B], how many of a row's tokens are valid; the stop token is not counted.
        failed: bool [B], rows whose logits were not finite after ``count`` tokens; the loop ends at
            the first.
    """

    tokens: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count
    failed: Array


class _State(NamedTuple):
    """State of the loop of ``write_tokens``.

    Attributes:
        n: how many tokens have been chosen for each row.
        token: int32 [B], the last of them.
        cache: holds every token but the last.
        done: bool [B], rows that have chosen a stop token.
        written: the tokens so far.
    """

    n: Array
    token: Array
    cache: Any
    done: Array
    written: Written


def write_tokens(
    model: Model,
    params: Params,
    tokens: Array,
    lengths: Array,
    s: Sampling,
    *,
    stops: Array,
    cache_length: int,
    max_new_tokens: int,
    order: str,
    passes: bool = False,
) -> Written:
    """Reads prompts, and writes tokens until every row has stopped or one row fails.

    Args:
        model: the model.
        params: its parameters.
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B], at least 1.
        s: the settings.
        stops: int [n], tokens that end a row.
        cache_length: tokens of a row that the cache has room for.
        max_new_tokens: most tokens written to a row.
        order: of the filters, a key of ``ops.sampling.ORDERS``.
        passes: whether a written token of some row may pass ``model.config.rope_switch``.
    """
    choice, cache = first_token(
        model, params, tokens, lengths, s, cache_length=cache_length, order=order
    )
    state = _take(_begun(choice, cache, max_new_tokens), choice, cache, stops)

    def unfinished(state: _State) -> Array:
        going_on = ~jnp.all(state.done) & ~jnp.any(state.written.failed)
        return (state.n < max_new_tokens) & going_on

    def advance(state: _State) -> _State:
        choice, cache = next_token(model, params, state.token, state.cache, s, order=order)
        return _take(state, choice, cache, stops)

    def at_switch(state: _State) -> Array:
        return jnp.any(state.cache.length == model.config.rope_switch)

    def over_switch(state: _State) -> _State:
        width = padded(model.config.rope_switch + 1, cache_length)
        history = _joined(tokens, lengths, state.written.tokens, width)
        logits, cache = step_over_switch(model, params, state.token, state.cache, history)
        choice = choose(logits, cache.length, s, order)
        return _take(state, choice, place_cache(cache), stops)

    def advance_over_switch(state: _State) -> _State:
        # A loop of its own, so that plain steps do not go through a conditional with the cache.
        state = jax.lax.while_loop(lambda x: unfinished(x) & ~at_switch(x), advance, state)
        return jax.lax.cond(unfinished(state), over_switch, lambda x: x, state)

    body = advance_over_switch if passes else advance
    return jax.lax.while_loop(unfinished, body, state).written


def _begun(token: Array, cache: Any, max_new_tokens: int) -> _State:
    """The state before any token is written."""
    B = token.shape[0]
    none = jnp.zeros((B,), bool)
    tokens = jnp.zeros((B, max_new_tokens), jnp.int32)
    written = Written(tokens, jnp.zeros((B,), jnp.int32), none)
    return _State(jnp.int32(0), token, cache, none, written)


def padded(length: int, most: int) -> int:
    """``length`` rounded up to a multiple of ``BUCKET``, and at most ``most``."""
    return min(-(-length // BUCKET) * BUCKET, most)


def _joined(tokens: Array, lengths: Array, written: Array, width: int) -> Array:
    """The first ``width`` tokens of each row, its prompt and what was written: int [B, width]."""
    at = jnp.arange(width)[None, :]
    of_prompt = jnp.take_along_axis(tokens, jnp.minimum(at, tokens.shape[1] - 1), axis=1)
    after = jnp.clip(at - lengths[:, None], 0, written.shape[1] - 1)
    return jnp.where(at < lengths[:, None], of_prompt, jnp.take_along_axis(written, after, axis=1))


def _take(state: _State, choice: Array, cache: Any, stops: Array) -> _State:
    """``state`` with ``choice`` [B] as the next token; a row that is done does not count it."""
    failed = (choice == NOT_FINITE) & ~state.done
    done = state.done | jnp.any(choice[:, None] == stops[None, :], axis=1)
    tokens = jax.lax.dynamic_update_slice(state.written.tokens, choice[:, None], (0, state.n))
    count = state.written.count + ~(done | failed)
    return _State(state.n + 1, choice, cache, done, Written(tokens, count, failed))
