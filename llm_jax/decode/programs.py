"""The compiled programs of decoding: reading prompts, one step, and the loop that writes tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.placement import place_cache
from llm_jax.models import Model
from llm_jax.ops.sampling import categorical, filter_logits, greedy, row_keys
from llm_jax.types import Batch, Params

NOT_FINITE = -1
"""What ``choose`` gives in place of a token where a row's logits are NaN or infinite."""


class Sampling(NamedTuple):
    """Settings of each row: changing one compiles nothing anew. All are arrays [B]; seed is [B, 2], high and low half of 64 bits."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    seed: Array


def prefill(model: Model, params: Params, tokens: Array, lengths: Array, cache: Any) -> tuple[Array, Any]:
    """Reads prompts into an empty cache. tokens: int [B, T] padded on the right, lengths: int [B], at least 1.

    Returns the logits [B, V] after each row's last token and the cache; each row continues at its own length. An encoder reads prompts
    where there is one, and the row's last token is its start token.
    """
    return read(model, params, model.prompt(tokens, lengths), cache)


def read(model: Model, params: Params, batch: Batch, cache: Any) -> tuple[Array, Any]:
    """``prefill`` of rows [B, T] padded on the right, at least one token each."""
    out = model.apply(params, batch, cache)
    last = jnp.sum(batch.segment_ids != 0, axis=1) - 1
    return model.logits(params, jnp.take_along_axis(out.hidden, last[:, None, None], axis=1))[:, 0], out.cache


def decode_step(model: Model, params: Params, tokens: Array, cache: Any) -> tuple[Array, Any]:
    """One token further. tokens: int [B]. Returns the logits [B, V] that follow, and the cache with them in it.

    The caller keeps each row's length below the cache's: past its end the oldest slots are overwritten.
    """
    one = jnp.ones_like(tokens)[:, None]
    positions = jnp.zeros_like(one) if cache.length is None else cache.length[:, None]
    batch = Batch(tokens[:, None], tokens[:, None], one.astype(bool), one, positions)
    out = model.apply(params, batch, cache)
    return model.logits(params, out.hidden)[:, 0], out.cache


def choose(logits: Array, positions: Array, s: Sampling, order: str) -> Array:
    """The sampler: one token per row, drawn with the row's own seed and position, or the most likely where temperature is 0.

    ``NOT_FINITE`` for a row with a logit that is NaN or infinite; filters write -inf only after this check.
    """

    def draw(logits: Array) -> Array:
        filtered = filter_logits(logits, s.temperature, s.top_k, s.top_p, s.min_p, order=order)
        return categorical(row_keys(s.seed, positions), filtered)

    token = jax.lax.cond(jnp.all(s.temperature == 0), greedy, draw, logits)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.where(finite, token, NOT_FINITE)


def first_token(
    model: Model, params: Params, tokens: Array, lengths: Array, s: Sampling, *, cache_length: int, order: str
) -> tuple[Array, Any]:
    """Prefill into a new cache of ``cache_length`` and the token [B] chosen after it."""
    cache = place_cache(model.init_cache(tokens.shape[0], cache_length))
    logits, cache = prefill(model, params, tokens, lengths, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


def next_token(model: Model, params: Params, token: Array, cache: Any, s: Sampling, *, order: str) -> tuple[Array, Any]:
    """One decode step and the token [B] chosen after it."""
    logits, cache = decode_step(model, params, token, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


class Steps(NamedTuple):
    """``first_token`` and ``next_token`` of one model, compiled for the current mesh; the second takes its cache over."""

    first: Callable
    next: Callable


def jit_steps(model: Model) -> Steps:
    """The two programs that decoding runs."""
    return Steps(
        jax.jit(partial(first_token, model), static_argnames=("cache_length", "order")),
        jax.jit(partial(next_token, model), static_argnames=("order",), donate_argnames=("cache",)),
    )


class Written(NamedTuple):
    """What ``write_tokens`` gives. tokens: int32 [B, max_new_tokens] · count: int32 [B], how many of them hold, less the stop token ·
    failed: bool [B], rows whose logits were not finite after that many tokens, which ended the loop.
    """

    tokens: Array
    count: Array
    failed: Array


class _State(NamedTuple):
    """n: tokens chosen for each row so far, of which ``token`` [B] is the last · done: bool [B], rows that have stopped."""

    n: Array
    token: Array
    cache: Any
    done: Array
    written: Written


def write_tokens(
    model: Model, params: Params, tokens: Array, lengths: Array, s: Sampling, stops: Array, *,
    cache_length: int, max_new_tokens: int, order: str,
) -> Written:
    """Reads prompts and writes up to ``max_new_tokens`` to each, until all rows have written one of ``stops`` or one row fails."""
    B = tokens.shape[0]
    choice, cache = first_token(model, params, tokens, lengths, s, cache_length=cache_length, order=order)
    none = jnp.zeros((B,), bool)
    nothing = Written(jnp.zeros((B, max_new_tokens), jnp.int32), jnp.zeros((B,), jnp.int32), none)
    state = _take(_State(jnp.int32(0), choice, cache, none, nothing), choice, cache, stops)

    def unfinished(state: _State) -> Array:
        going_on = ~jnp.all(state.done) & ~jnp.any(state.written.failed)
        return (state.n < max_new_tokens) & going_on

    def advance(state: _State) -> _State:
        choice, cache = next_token(model, params, state.token, state.cache, s, order=order)
        return _take(state, choice, cache, stops)

    return jax.lax.while_loop(unfinished, advance, state).written


def _take(state: _State, choice: Array, cache: Any, stops: Array) -> _State:
    """``state`` with ``choice`` as the next token of each row. What a row does after its stop token counts for nothing."""
    failed = (choice == NOT_FINITE) & ~state.done
    done = state.done | jnp.any(choice[:, None] == stops[None, :], axis=1)
    tokens = jax.lax.dynamic_update_slice(state.written.tokens, choice[:, None], (0, state.n))
    count = state.written.count + ~(done | failed)
    return _State(state.n + 1, choice, cache, done, Written(tokens, count, failed))
