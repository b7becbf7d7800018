"""Speculative decoding: tokens are drafted, and the model verifies several of them in one call.

The text has exactly the model's distribution after all processors; greedy text is the model's own.
A step is ``propose`` and then ``verify``. Rows accept different numbers of tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped

from llm_jax.decode import loop
from llm_jax.decode.acceptance import Verified, draft_keys, verify_draws, verify_equal
from llm_jax.decode.drafts import Drafter, Pair, Weights
from llm_jax.decode.lookup import look_up
from llm_jax.decode.loop import CHOOSE, all_greedy, candidates, commit, draw, for_cache
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import extend
from llm_jax.decode.state import (
    DRAFT_NOT_FINITE,
    RUNNING,
    Candidates,
    Choosing,
    Prompts,
    Room,
    State,
    Stops,
)
from llm_jax.ops.sampling.draws import categorical, greedy
from llm_jax.ops.sampling.history import History
from llm_jax.ops.sampling.settings import Settings
from llm_jax.types import Params


class DraftState(NamedTuple):
    """What the loop carries beside a ``State``.

    Attributes:
        cache: of the draft's model; None where it has none of its own.
        drafted: int32 [B], tokens that were drafted for each row.
        accepted: int32 [B], those that became a part of its text, or ended it.
        steps: int32 [], calls of the model after the prompts.
    """

    cache: Any
    drafted: Array
    accepted: Array
    steps: Array


class Proposal(NamedTuple):
    """Drafted tokens, G places.

    Attributes:
        tokens: int32 [G, B].
        counts: int32 [B], how many each row has.
        logits: float32 [G, B, V], processed, that they were drawn from; None for copied tokens.
        failed: bool [B], whether the logits of the draft are not finite.
    """

    tokens: Array
    counts: Array
    logits: Array | None
    failed: Array


def begin(
    pair: Pair, weights: Weights, prompts: Prompts, *, room: Room, choosing: Choosing
) -> State:
    """``loop.begin``, and the draft reads the prompts too."""
    state = loop.begin(pair.target, weights.target, prompts, room=room, choosing=choosing)
    cache = None
    if pair.drafter.has_cache:
        assert pair.drafter.model is not None
        _, cache = loop.read_prompts(
            pair.drafter.model, weights.draft, prompts, room=room, guided=choosing.guided
        )
    none = jnp.zeros_like(state.reason)
    return state._replace(draft=DraftState(cache, none, none, jnp.int32(0)))


def advance(
    pair: Pair,
    weights: Weights,
    state: State,
    settings: Settings,
    stops: Stops,
    *,
    choosing: Choosing,
) -> State:
    """One step: tokens are drafted, and the model verifies them.

    Each row that goes on gets one token, and those that are accepted. Rows that have ended stay as
    they are.
    """
    proposal, state = propose(pair, weights, state, settings, choosing=choosing)
    return verify(pair, weights, state, proposal, settings, stops, choosing=choosing)


def write(
    pair: Pair,
    weights: Weights,
    state: State,
    settings: Settings,
    stops: Stops,
    *,
    choosing: Choosing,
) -> State:
    """Steps from the state with the first token on, until every row has ended or one row fails."""
    step = partial(advance, pair, weights, settings=settings, stops=stops, choosing=choosing)
    return jax.lax.while_loop(lambda state: state.unfinished, step, state)


class Steps(NamedTuple):
    """Compiled programs of a pair. No row passes ``rope_switch``.

    Attributes:
        begin: reads prompts.
        one: ``advance``; donates its state.
        all: ``write``; donates its state.
    """

    begin: Wrapped
    one: Wrapped
    all: Wrapped

    def advance(
        self,
        weights: Weights,
        state: State,
        settings: Settings,
        stops: Stops,
        *,
        choosing: Choosing,
    ) -> State:
        """One step of a stream."""
        state = state._replace(logits=None)
        return self.one(weights, state=state, settings=settings, stops=stops, choosing=choosing)

    def write(
        self,
        weights: Weights,
        state: State,
        settings: Settings,
        stops: Stops,
        *,
        room: Room,
        choosing: Choosing,
    ) -> State:
        """Writes tokens after ``begin`` until every row has ended or one row fails."""
        state = CHOOSE(state, settings, stops, choosing=choosing)._replace(logits=None)
        return self.all(weights, state=state, settings=settings, stops=stops, choosing=choosing)


def jit_steps(pair: Pair) -> Steps:
    """The programs that speculative decoding runs one after another."""
    static = ("choosing",)
    donated = ("state",)
    return Steps(
        begin=jax.jit(partial(begin, pair), static_argnames=("room", *static)),
        one=jax.jit(partial(advance, pair), static_argnames=static, donate_argnames=donated),
        all=jax.jit(partial(write, pair), static_argnames=static, donate_argnames=donated),
    )


def propose(
    pair: Pair, weights: Weights, state: State, settings: Settings, *, choosing: Choosing
) -> tuple[Proposal, State]:
    """Drafted tokens, and the state in which the draft's cache has been written.

    A row is drafted no more tokens than it may still write. The last of them may be one too many,
    since verification adds one; drafted it is, so that ``max_new`` does not change the text before.
    """
    history = state.history
    drafter = pair.drafter
    # The model reads its latest token and the drafted ones in one call, which the cache must hold.
    most = min(drafter.tokens, history.ids.shape[1] - 1)
    left = settings.rules.max_new - history.generated
    wanted = jnp.where(state.reason == RUNNING, jnp.clip(left, 0, most), 0)
    if drafter.model is None:
        encoded = pair.target.config.encoder is not None
        tokens, found = look_up(history, most, drafter.config.ngram, source=encoded)
        failed = jnp.zeros_like(wanted, dtype=bool)
        return Proposal(tokens.T, jnp.minimum(found, wanted), None, failed), state
    before = state.cache if drafter.shared else state.draft.cache
    cache = before._replace(layers=before.layers[: drafter.shared or None])
    start = _Drafting(cache, history, wanted > 0, jnp.zeros_like(wanted, dtype=bool))
    read = _Reading(drafter, weights.draft, settings, choosing, history.length + wanted)
    # A draft has not read the last of its tokens where all were accepted.
    drafting, first = _draft_one(read, start, width=1 if drafter.shared else 2)
    drafting, others = jax.lax.scan(
        lambda carry, _: _draft_one(read, carry, width=1), drafting, None, length=most - 1
    )
    tokens, logits = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)
    counts = drafting.history.length - history.length
    if drafter.shared:
        # The model writes the same tokens again where it verifies them, through all its layers.
        cache = drafting.cache.truncate(before.length, most=most)
        cache = state.cache._replace(layers=cache.layers + before.layers[drafter.shared :])
        return Proposal(tokens, counts, logits, drafting.failed), state._replace(cache=cache)
    draft = state.draft._replace(cache=drafting.cache)
    return Proposal(tokens, counts, logits, drafting.failed), state._replace(draft=draft)


def verify(
    pair: Pair,
    weights: Weights,
    state: State,
    proposal: Proposal,
    settings: Settings,
    stops: Stops,
    *,
    choosing: Choosing,
    allowed: Array | None = None,
) -> State:
    """The state after the drafted tokens that the model accepts, and one more of each row.

    Args:
        pair: the models.
        weights: their parameters.
        state: before; its cache is written on.
        proposal: what was drafted.
        settings: of each row.
        stops: texts that end a row.
        choosing: static choices.
        allowed: uint32 [G + 1, B, ceil(V / 32)], in place of ``settings.rules.allowed`` at each
            place.
    """
    model = pair.target
    history = state.history
    most = proposal.tokens.shape[0]
    running = state.reason == RUNNING
    reads = jnp.where(running, proposal.counts + 1, 0)
    tokens = jnp.concatenate([_last(history)[:, None], proposal.tokens.T], axis=1)
    guided = choosing.guided
    hidden, cache = extend(
        model, weights.target, for_cache(tokens, guided), for_cache(reads, guided), state.cache
    )
    written = history.append(proposal.tokens.T, proposal.counts)
    places = history.length[None, :] + jnp.arange(most + 1)[:, None]
    logits = model.logits(weights.target, hidden)
    found = _at_each_place(logits, places, settings, written, choosing, allowed)
    verified = _verified(found, proposal, settings, places)
    accepted = jnp.where(running, verified.accepted, 0)

    def one(carry: tuple[State, Array], place: Any) -> tuple[tuple[State, Array], None]:
        state, used = carry
        token, at_place, index = place
        used = used + ((state.reason == RUNNING) & (index < accepted))
        offered = (index <= accepted) & ~proposal.failed
        state = commit(state, token, at_place, settings, stops, choosing=choosing, offered=offered)
        return (state, used), None

    draft = state.draft
    bare = state._replace(cache=None, draft=None)
    by_place = (verified.tokens, found, jnp.arange(most + 1))
    (after, used), _ = jax.lax.scan(one, (bare, jnp.zeros_like(accepted)), by_place)
    kept = for_cache(jnp.where(running, accepted + 1, 0), guided)
    cache = cache.truncate(state.cache.length + kept, most=most)
    return after._replace(
        cache=place_cache(cache),
        reason=jnp.where(running & proposal.failed, DRAFT_NOT_FINITE, after.reason),
        draft=DraftState(
            cache=_cut(draft.cache, history.length + accepted, guided, most),
            drafted=draft.drafted + jnp.where(running, proposal.counts, 0),
            accepted=draft.accepted + used,
            steps=draft.steps + 1,
        ),
    )


def catch_up(pair: Pair, weights: Weights, state: State, *, guided: bool) -> State:
    """The state in which the draft's own model has read all but the latest token of each row that
    goes on, where it has missed at most as many as it drafts.

    A step leaves at most two tokens unread. More are after tokens that another has chosen.
    """
    model = pair.drafter.model
    assert model is not None
    history = state.history
    cache = state.draft.cache
    width = min(pair.drafter.tokens, history.ids.shape[1] - 1)
    known = cache.length[: history.length.shape[0]]
    unread = jnp.where(state.reason == RUNNING, history.length - 1 - known, 0)
    tokens = tokens_from(history, known, width)
    _, cache = extend(
        model, weights.draft, for_cache(tokens, guided), for_cache(unread, guided), cache
    )
    return state._replace(draft=state.draft._replace(cache=place_cache(cache)))


def cut_draft(state: State, lengths: Array, *, guided: bool, most: int) -> State:
    """The state in which the draft's own model has read at most ``lengths`` [B] tokens of each row,
    up to ``most`` fewer than before.
    """
    cache = _cut(state.draft.cache, lengths, guided, most)
    return state._replace(draft=state.draft._replace(cache=cache))


class _Drafting(NamedTuple):
    """What drafting carries.

    Attributes:
        cache: of the draft.
        history: with the drafted tokens.
        active: bool [B], the rows that one more token is drafted for.
        failed: bool [B], as in ``Proposal``.
    """

    cache: Any
    history: History
    active: Array
    failed: Array


class _Reading(NamedTuple):
    """What does not change while a draft is made.

    Attributes:
        drafter: static.
        params: of its model.
        settings: of each row.
        choosing: static choices.
        end: int32 [B], tokens of each row after the last that is drafted.
    """

    drafter: Drafter
    params: Params
    settings: Settings
    choosing: Choosing
    end: Array


def _draft_one(
    read: _Reading, drafting: _Drafting, *, width: int
) -> tuple[_Drafting, tuple[Array, Array]]:
    """One more drafted token of each active row.

    width: most tokens of a row that the draft has not read.

    Returns:
        What is carried on, the tokens [B] and the processed logits [B, V].
    """
    model = read.drafter.model
    assert model is not None
    history = drafting.history
    rows = history.length.shape[0]
    guided = read.choosing.guided
    known = drafting.cache.length[:rows]
    unread = jnp.where(drafting.active, history.length - known, 0)
    tokens = tokens_from(history, known, width)
    unread = for_cache(unread, guided)
    hidden, cache = extend(model, read.params, for_cache(tokens, guided), unread, drafting.cache)
    last = jnp.maximum(unread - 1, 0)[:, None, None]
    logits = model.logits(read.params, jnp.take_along_axis(hidden, last, axis=1)[:, 0])
    found = candidates(logits, read.settings, history, read.choosing)
    token = _draw_draft(found.processed, read.settings, history.length)
    # A row of which no token is left goes to the model as it is, which has the same rules.
    usable = drafting.active & found.finite & (token >= 0)
    longer = history.append(token[:, None], usable.astype(jnp.int32))
    return _Drafting(
        cache=place_cache(cache),
        history=longer,
        active=usable & (longer.length < read.end),
        failed=drafting.failed | (drafting.active & ~found.finite),
    ), (token, found.processed)


def _draw_draft(processed: Array, settings: Settings, places: Array) -> Array:
    def sample(processed: Array) -> Array:
        return categorical(draft_keys(settings.seed, places), processed)

    return jax.lax.cond(all_greedy(settings), greedy, sample, processed)


def _at_each_place(
    logits: Array,
    places: Array,
    settings: Settings,
    history: History,
    choosing: Choosing,
    allowed: Array | None,
) -> Candidates:
    """What each token is chosen from, [G + 1, B, …], given the drafted tokens before it.

    Args:
        logits: [B, G + 1, V], or of twice the rows with guidance.
        places: int32 [G + 1, B], tokens before each.
        settings: of each row.
        history: with all drafted tokens.
        choosing: static choices.
        allowed: as in ``verify``.
    """

    def at_place(logits: Array, length: Array, allowed: Array | None) -> Candidates:
        own = settings
        if allowed is not None:
            own = settings._replace(rules=settings.rules._replace(allowed=allowed))
        return candidates(logits, own, history._replace(length=length), choosing)

    axes = (1, 0, None if allowed is None else 0)
    return jax.vmap(at_place, axes)(logits, places, allowed)


def _verified(found: Candidates, proposal: Proposal, settings: Settings, places: Array) -> Verified:
    def equal(processed: Array) -> Verified:
        tokens = jax.vmap(partial(draw, settings=settings))(processed, places=places)
        return verify_equal(tokens, proposal.tokens, proposal.counts)

    drawn_from = proposal.logits
    if drawn_from is None:
        return equal(found.processed)

    def drawn(processed: Array) -> Verified:
        return verify_draws(
            processed,
            drawn_from,
            proposal.tokens,
            proposal.counts,
            seeds=settings.seed,
            places=places,
        )

    return jax.lax.cond(all_greedy(settings), equal, drawn, found.processed)


def _cut(cache: Any, lengths: Array, guided: bool, most: int) -> Any:
    """The draft's own cache after rows were cut to ``lengths`` [B]; None without one."""
    if cache is None:
        return None
    # Rows of negative prompts are longer or shorter by as much as they were in the beginning.
    rows = lengths.shape[0]
    more = cache.length - for_cache(cache.length[:rows], guided)
    return place_cache(cache.truncate(for_cache(lengths, guided) + more, most=most))


def tokens_from(history: History, start: Array, width: int) -> Array:
    """int32 [B, width], tokens of each row from the place ``start`` [B] on."""
    places = start[:, None] + jnp.arange(width)[None, :]
    at = jnp.minimum(places, history.ids.shape[1] - 1)
    return jnp.take_along_axis(history.ids, at, axis=1)


def _last(history: History) -> Array:
    """int32 [B], the latest token of each row."""
    at = jnp.maximum(history.length - 1, 0)
    return jnp.take_along_axis(history.ids, at[:, None], axis=1)[:, 0]
