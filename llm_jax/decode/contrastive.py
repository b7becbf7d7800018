"""Contrastive search as a compiled loop (Su et al. 2022, section 3.2).

Each step reads the k most likely tokens of every row at once, as k rows, and keeps the one that is
likely and unlike the text so far.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.loop import commit, no_scores, read_into_new, start_history
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import extend
from llm_jax.decode.prompts import prefill_batch
from llm_jax.decode.state import Candidates, Choosing, Prompts, Room, State, Stops
from llm_jax.models import Model
from llm_jax.ops.sampling.contrastive import contrastive_scores
from llm_jax.ops.sampling.process import process
from llm_jax.ops.sampling.settings import Settings
from llm_jax.types import Params


class Contrast(NamedTuple):
    """Settings of contrastive search.

    Attributes:
        alpha: float32 [B], weight of the distance from the text; 0 is greedy.
        k: int32 [B], candidates of each row.
    """

    alpha: Array
    k: Array


class _Loop(NamedTuple):
    """What the loop carries.

    Attributes:
        state: as in ``loop``; its token is read already.
        logits: [B, V] after the last token.
        context: [B, S, D], hidden states of all tokens.
    """

    state: State
    logits: Array
    context: Array


def write_contrastive(
    model: Model,
    params: Params,
    prompts: Prompts,
    settings: Settings,
    stops: Stops,
    contrast: Contrast,
    *,
    room: Room,
    choosing: Choosing,
    candidates: int,
) -> State:
    """Reads prompts, and writes tokens until every row has ended or one row fails.

    Args:
        model: the model.
        params: its parameters.
        prompts: the prompts.
        settings: of each row; temperature, filters and seeds are not read.
        stops: texts that end a row.
        contrast: settings of the search.
        room: static sizes, with one sample of each prompt.
        choosing: static choices.
        candidates: static, the largest k.

    Returns:
        The last state, without its cache.
    """
    batch = prefill_batch(model.config, prompts.tokens, prompts.lengths)
    logits, hidden, cache = read_into_new(model, params, batch, room.length)
    history = start_history(batch, prompts, room.length)
    B, T, D = hidden.shape
    context = jnp.zeros((B, room.length, D), hidden.dtype).at[:, :T].set(hidden)
    none = jnp.zeros((B,), jnp.int32)
    scores = no_scores(B, room.length, choosing.top)
    state = State(
        token=none,
        cache=place_cache(cache),
        history=history,
        reason=none,
        stop_state=none,
        scores=scores,
    )

    def step(now: _Loop) -> _Loop:
        return _step(
            model,
            params,
            now,
            settings=settings,
            stops=stops,
            contrast=contrast,
            choosing=choosing,
            k=candidates,
        )

    first = _Loop(state, logits, context)
    last = jax.lax.while_loop(lambda now: now.state.unfinished, step, first)
    return last.state._replace(cache=None)


def _step(
    model: Model,
    params: Params,
    now: _Loop,
    *,
    settings: Settings,
    stops: Stops,
    contrast: Contrast,
    choosing: Choosing,
    k: int,
) -> _Loop:
    state = now.state
    B, V = now.logits.shape
    processed = process(
        now.logits, settings, state.history, order=choosing.order, own=choosing.own, warp=False
    )
    found = Candidates(now.logits, processed, jnp.all(jnp.isfinite(now.logits), axis=-1))
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(processed, axis=-1), k)
    # A token that may not come is no candidate, nor is one beyond the row's own k.
    may_come = (probabilities > 0) & (jnp.arange(k)[None, :] < contrast.k[:, None])

    of_row = jnp.repeat(jnp.arange(B), k)
    one = jnp.ones((B * k,), jnp.int32)
    tokens = ids.reshape(-1, 1).astype(jnp.int32)
    hidden, cache = extend(model, params, tokens, one, place_cache(state.cache.gather(of_row)))
    logits = model.logits(params, hidden)[:, 0].reshape(B, k, V)
    hidden = hidden.reshape(B, k, -1)

    ranks = contrastive_scores(
        probabilities, hidden, now.context, state.history.is_token, contrast.alpha
    )
    chosen = jnp.argmax(jnp.where(may_come, ranks, -jnp.inf), axis=-1)
    token = _pick(ids, chosen).astype(jnp.int32)
    place = state.history.length
    context = now.context.at[jnp.arange(B), place].set(_pick(hidden, chosen), mode="drop")
    cache = place_cache(cache.gather(jnp.arange(B) * k + chosen))
    state = commit(state._replace(cache=cache), token, found, settings, stops, choosing=choosing)
    return _Loop(state, _pick(logits, chosen), context)


def _pick(x: Array, chosen: Array) -> Array:
    """x[b, chosen[b]] of x [B, k, …]."""
    return x[jnp.arange(x.shape[0]), chosen]
