"""Completions of the state that a loop ends with, or of that between two steps of a stream."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.requests import Call
from llm_jax.decode.results import Completion, TokenScore, token_scores
from llm_jax.decode.state import STOP_ID, STOP_TEXT, State
from llm_jax.ops.sampling.history import History
from llm_jax.ops.sampling.logprobs import Logprobs


class Seen(NamedTuple):
    """What the host looks at after each step of a stream; arrays [B] of the state."""

    token: Any
    reason: Any
    prompt: Any
    length: Any


def without_caches(state: State) -> State:
    """The state without caches and logits, which a result does not need."""
    draft = state.draft and state.draft._replace(cache=None)
    return state._replace(cache=None, logits=None, draft=draft)


def seen_of(state: State) -> Seen:
    return Seen(state.token, state.reason, state.history.prompt, state.history.length)


def stream_scores(state: State, start: int, count: int, width: int) -> list[TokenScore]:
    """``count`` tokens of a stream, at most ``width``, from place ``start`` of its history on."""
    if not count:
        return []
    ids, scores = jax.device_get(_latest(state.history, state.scores, start, width=width))
    ids = ids[:count].tolist()
    return [TokenScore(id, math.nan) for id in ids] if scores is None else token_scores(ids, scores)


@partial(jax.jit, static_argnames="width")
def _latest(
    history: History, scores: Logprobs | None, start: Array, *, width: int
) -> tuple[Array, Logprobs | None]:
    """``width`` tokens of row 0 from place ``start`` on, and their scores."""
    at = start + jnp.arange(width)
    ids = jnp.take(history.ids[0], at, mode="clip")
    place = at - history.prompt[0]
    return ids, jax.tree.map(lambda a: jnp.take(a[0], place, axis=0, mode="clip"), scores)


def completion_of(state: State, call: Call, row: int) -> Completion:
    """What a row has written so far."""
    start = int(state.history.prompt[row])
    end = int(state.history.length[row])
    ids = state.history.ids[row, start:end].tolist()
    reason = int(state.reason[row])
    stop = int(state.token[row]) if reason == STOP_ID else None
    return Completion(
        ids=ids,
        finish_reason="stop" if reason in (STOP_ID, STOP_TEXT) else "length",
        stop=stop,
        seed=call.rows.seeds[row],
        order=call.choosing.order,
        scores=_token_scores(state, row, ids),
        drafted=0 if state.draft is None else int(state.draft.drafted[row]),
        accepted=0 if state.draft is None else int(state.draft.accepted[row]),
    )


def _token_scores(state: State, row: int, ids: list[int]) -> tuple[TokenScore, ...]:
    if state.scores is None:
        return ()
    return tuple(token_scores(ids, Logprobs(*(a[row] for a in state.scores))))
