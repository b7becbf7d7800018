"""The loop that writes tokens: its state, and the programs that change it.

``begin`` reads the prompts, ``choose`` chooses a token of each row, and ``read`` has the model read
it. ``write`` runs the last two in one compiled loop; a stream runs them one after another.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped

from llm_jax.decode.chunks import prefill_in_chunks
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import decode_step, padded, read_all, step_over_switch
from llm_jax.decode.prompts import prefill_batch
from llm_jax.decode.state import (
    BANNED,
    LENGTH,
    NOT_FINITE,
    RUNNING,
    STOP_ID,
    STOP_TEXT,
    Candidates,
    Choosing,
    Prompts,
    Room,
    State,
    Stops,
)
from llm_jax.models import Model
from llm_jax.ops.sampling.draws import categorical, greedy, row_keys
from llm_jax.ops.sampling.history import History, history_of
from llm_jax.ops.sampling.logprobs import Logprobs, token_logprobs
from llm_jax.ops.sampling.process import process
from llm_jax.ops.sampling.settings import Settings
from llm_jax.ops.sampling.tokens import all_banned
from llm_jax.types import Batch, Params


def begin(
    model: Model, params: Params, prompts: Prompts, *, room: Room, choosing: Choosing
) -> State:
    """Reads the prompts: the state before the first new token.

    Args:
        model: the model.
        params: its parameters.
        prompts: the prompts.
        room: static sizes.
        choosing: static choices.
    """
    logits, cache = read_prompts(model, params, prompts, room=room, guided=choosing.guided)
    begun = prefill_batch(model.config, prompts.tokens, prompts.lengths)
    history = start_history(begun, prompts, room.length)
    if room.samples > 1:
        history = history.gather(jnp.repeat(jnp.arange(prompts.tokens.shape[0]), room.samples))
    B = history.length.shape[0]
    none = jnp.zeros((B,), jnp.int32)
    return State(
        token=none,
        cache=cache,
        history=history,
        reason=none,
        stop_state=none,
        scores=no_scores(B, room.length, choosing.top),
        logits=logits,
    )


def read_prompts(
    model: Model, params: Params, prompts: Prompts, *, room: Room, guided: bool
) -> tuple[Array, Any]:
    """The logits [B, V] after each prompt, and a new cache with the prompts.

    With ``guided``, rows are the prompts and then the negative prompts. The samples of a prompt are
    next to each other.
    """
    begun = prefill_batch(model.config, prompts.tokens, prompts.lengths)
    logits, cache = _read_prompts(model, params, begun, room)
    if guided:
        if prompts.negative is None or prompts.negative_lengths is None:
            raise ValueError("guidance needs negative prompts")
        other = prefill_batch(model.config, prompts.negative, prompts.negative_lengths)
        other_logits, other_cache = _read_prompts(model, params, other, room)
        logits = jnp.concatenate([logits, other_logits])
        cache = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cache, other_cache)
    if room.samples > 1:
        rows = jnp.repeat(jnp.arange(logits.shape[0]), room.samples)
        logits = jnp.take(logits, rows, axis=0)
        cache = cache.gather(rows)
    return logits, place_cache(cache)


def choose(state: State, settings: Settings, stops: Stops, *, choosing: Choosing) -> State:
    """The state with the token that ``state.logits`` give in each row that goes on.

    Args:
        state: before the token.
        settings: of each row; the samples of a prompt are next to each other.
        stops: texts that end a row.
        choosing: static choices.
    """
    assert state.logits is not None
    found = candidates(state.logits, settings, state.history, choosing)
    token = draw(found.processed, settings, state.history.length)
    return commit(state, token, found, settings, stops, choosing=choosing)


def read(model: Model, params: Params, state: State, *, guided: bool) -> State:
    """The model reads the latest token of each row. Rows that have ended keep their history."""
    logits, cache = decode_step(model, params, for_cache(state.token, guided), state.cache)
    return state._replace(logits=logits, cache=place_cache(cache))


def read_over_switch(model: Model, params: Params, state: State, *, room: Room) -> State:
    """``read`` where some rows pass ``model.config.rope_switch`` and are read again."""
    width = padded(model.config.rope_switch + 1, room.length)
    logits, cache = step_over_switch(
        model, params, state.token, state.cache, state.history.ids[:, :width]
    )
    return state._replace(logits=logits, cache=place_cache(cache))


def write(
    model: Model,
    params: Params,
    state: State,
    settings: Settings,
    stops: Stops,
    *,
    room: Room,
    choosing: Choosing,
    passes: bool = False,
) -> State:
    """Writes tokens until every row has ended or one row fails.

    Args:
        model: the model.
        params: its parameters.
        state: of ``begin``.
        settings: of each row.
        stops: texts that end a row.
        room: static sizes.
        choosing: static choices.
        passes: whether a written token of some row may pass ``model.config.rope_switch``.
    """

    def step(state: State) -> State:
        state = choose(state, settings, stops, choosing=choosing)
        return _read_unless_ended(model, params, state, room=room, choosing=choosing, passes=passes)

    return jax.lax.while_loop(lambda state: state.unfinished, step, state)


def _read_unless_ended(
    model: Model, params: Params, state: State, *, room: Room, choosing: Choosing, passes: bool
) -> State:
    """The state with the latest tokens read, if some row goes on.

    Each read is a loop of at most one turn in place of a conditional, through which a cache may be
    copied.
    """

    def read_plain(now: tuple[State, Array]) -> tuple[State, Array]:
        return read(model, params, now[0], guided=choosing.guided), jnp.array(False)

    def read_again(now: tuple[State, Array]) -> tuple[State, Array]:
        return read_over_switch(model, params, now[0], room=room), jnp.array(False)

    def is_plain(now: tuple[State, Array]) -> Array:
        state, unread = now
        return unread & ~jnp.any(state.cache.length == model.config.rope_switch)

    now = (state, state.unfinished)
    if not passes:
        return jax.lax.while_loop(lambda now: now[1], read_plain, now)[0]
    now = jax.lax.while_loop(is_plain, read_plain, now)
    return jax.lax.while_loop(lambda now: now[1], read_again, now)[0]


CHOOSE = jax.jit(choose, static_argnames=("choosing",), donate_argnames=("state",))
"""``choose`` compiled, for every model of a vocabulary."""


class Steps(NamedTuple):
    """Compiled programs of one model. All but ``begin`` donate their state.

    Attributes:
        begin: reads prompts.
        read: reads the latest token of each row.
        over_switch: ``read_over_switch``.
        write: writes tokens until every row has ended.
    """

    begin: Wrapped
    read: Wrapped
    over_switch: Wrapped
    write: Wrapped

    def advance(
        self,
        params: Params,
        state: State,
        settings: Settings,
        stops: Stops,
        *,
        choosing: Choosing,
    ) -> State:
        """One step of a stream: the latest token of each row is read, and the next is chosen."""
        state = self.read(params, state=state, guided=choosing.guided)
        return CHOOSE(state, settings, stops, choosing=choosing)


def jit_steps(model: Model) -> Steps:
    """The programs that decoding runs one after another."""
    static = ("room", "choosing")
    donated = ("state",)
    return Steps(
        begin=jax.jit(partial(begin, model), static_argnames=static),
        read=jax.jit(partial(read, model), static_argnames=("guided",), donate_argnames=donated),
        over_switch=jax.jit(
            partial(read_over_switch, model), static_argnames=("room",), donate_argnames=donated
        ),
        write=jax.jit(
            partial(write, model), static_argnames=(*static, "passes"), donate_argnames=donated
        ),
    )


def candidates(
    logits: Array, settings: Settings, history: History, choosing: Choosing
) -> Candidates:
    """What the next token of each row is chosen from.

    Args:
        logits: [B, V]; with guidance [2B, V], the second half without the prompt.
        settings: of each row.
        history: of each row.
        choosing: static choices.
    """
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    unconditional = None
    if choosing.guided:
        finite = jnp.all(finite.reshape(2, -1), axis=0)
        logits, unconditional = jnp.split(logits, 2)
    processed = process(
        logits,
        settings,
        history,
        order=choosing.order,
        own=choosing.own,
        unconditional=unconditional,
    )
    return Candidates(logits, processed, finite)


def draw(processed: Array, settings: Settings, places: Array) -> Array:
    """The sampler: one token int32 [B] of processed logits [B, V].

    Args:
        processed: [B, V].
        settings: of each row.
        places: int [B], tokens before the one that is drawn, which choose the random numbers with
            the row's seed.
    """

    def sample(processed: Array) -> Array:
        return categorical(row_keys(settings.seed, places), processed)

    return jax.lax.cond(all_greedy(settings), greedy, sample, processed)


def all_greedy(settings: Settings) -> Array:
    """Whether no row draws: bool []."""
    return jnp.all(settings.filters.temperature == 0)


def commit(
    state: State,
    token: Array,
    found: Candidates,
    settings: Settings,
    stops: Stops,
    *,
    choosing: Choosing,
    offered: Array | None = None,
) -> State:
    """The state with one more token in each row that goes on, and the rows ended that it ends.

    Args:
        state: before the token.
        token: int32 [B].
        found: what it was chosen from.
        settings: of each row.
        stops: texts that end a row.
        choosing: static choices.
        offered: bool [B], the rows that get a token; None is all.
    """
    running = state.reason == RUNNING
    if offered is not None:
        running = running & offered
    ends = jnp.any(token[:, None] == settings.rules.stop_ids, axis=1)
    failed = ~found.finite | all_banned(found.processed)
    counted = running & ~ends & ~failed
    history = state.history.append(token[:, None], counted.astype(jnp.int32))
    is_first = state.history.generated == 0
    stop_state, matched = stops.advance(state.stop_state, token, is_first)
    reasons = (
        (~found.finite, NOT_FINITE),
        (failed, BANNED),
        (ends, STOP_ID),
        (matched, STOP_TEXT),
        (history.generated >= settings.rules.max_new, LENGTH),
    )
    reason = jnp.full_like(state.reason, RUNNING)
    for holds, number in reversed(reasons):
        reason = jnp.where(holds, number, reason)
    scores = state.scores
    if scores is not None:
        of = found.processed if choosing.processed else found.logits
        scores = _scored(scores, of, token, state.history.generated, counted)
    return state._replace(
        token=jnp.where(running, token, state.token),
        history=history,
        reason=jnp.where(running, reason, state.reason),
        stop_state=jnp.where(counted, stop_state, state.stop_state),
        scores=scores,
    )


def for_cache(rows: Array, guided: bool) -> Array:
    """[B, …] as the rows of the cache have it: twice with guidance."""
    return jnp.concatenate([rows, rows]) if guided else rows


def _read_prompts(model: Model, params: Params, batch: Batch, room: Room) -> tuple[Array, Any]:
    """Logits after each row's last token, and a new cache with the rows."""
    if not room.chunk:
        logits, _, cache = read_into_new(model, params, batch, room.length, rollback=room.rollback)
        return logits, cache
    tokens = batch.inputs.ids
    lengths = jnp.sum(batch.inputs.segment_ids != 0, axis=1, dtype=jnp.int32)
    cache = place_cache(model.init_cache(tokens.shape[0], room.length, rollback=room.rollback))
    return prefill_in_chunks(model, params, tokens, lengths, cache, room.chunk)


def read_into_new(
    model: Model, params: Params, batch: Batch, length: int, *, rollback: int = 0
) -> tuple[Array, Array, Any]:
    """``programs.read_all`` into a new cache of ``length`` tokens a row, of which ``rollback`` may
    be taken back.
    """
    encoder = {} if batch.encoder is None else {"encoder_length": batch.encoder.ids.shape[1]}
    rows = batch.inputs.ids.shape[0]
    cache = model.init_cache(rows, length, rollback=rollback, **encoder)
    return read_all(model, params, batch, place_cache(cache))


def start_history(begun: Batch, prompts: Prompts, length: int) -> History:
    """The history of the tokens that decoding begins with; the prompts are its source."""
    own = jnp.sum(begun.inputs.segment_ids != 0, axis=1, dtype=jnp.int32)
    return history_of(
        begun.inputs.ids,
        own,
        length,
        source_ids=prompts.tokens,
        source_length=prompts.lengths,
    )


def no_scores(rows: int, places: int, top: int) -> Logprobs | None:
    """Room for the scores of new tokens; None where ``top`` asks for none."""
    if top < 0:
        return None
    one = (rows, places)
    several = (rows, places, top)
    return Logprobs(
        chosen=jnp.zeros(one),
        rank=jnp.zeros(one, jnp.int32),
        top_ids=jnp.zeros(several, jnp.int32),
        top=jnp.zeros(several),
    )


def _scored(
    scores: Logprobs, logits: Array, token: Array, place: Array, counted: Array
) -> Logprobs:
    """``scores`` with those of the tokens that are counted, at ``place`` [B]."""
    found = token_logprobs(logits, jnp.maximum(token, 0), scores.top.shape[-1])
    rows = jnp.arange(token.shape[0])
    # Nothing is written beyond the last place.
    at = jnp.where(counted, place, scores.chosen.shape[1])
    return jax.tree.map(lambda all, new: all.at[rows, at].set(new, mode="drop"), scores, found)
