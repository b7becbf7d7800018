"""Constrained decoding: a loop on the host around compiled steps.

In each round the model reads the new tokens of every row, while the host computes which tokens may
come next; then one of them is drawn as in ``decode.loop``, with the same settings. Where a
constraint leaves one text only, its tokens are read with the next round and not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.stages import Wrapped

from llm_jax.decode import loop
from llm_jax.decode.completions import without_caches
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrained_plan import has_bit
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import await_allocation, extend, read
from llm_jax.decode.state import (
    BANNED,
    DRAFT_NOT_FINITE,
    LENGTH,
    NOT_FINITE,
    RUNNING,
    STOP_ID,
    STOP_TEXT,
    Choosing,
    Prompts,
    Room,
    State,
    Stops,
)
from llm_jax.models import Model, rows_of
from llm_jax.ops.sampling.settings import Settings
from llm_jax.ops.sampling.stops import START
from llm_jax.types import ConfigError, Params

WIDTHS = (1, 8, 32)
"""Tokens of a row that one call reads at most; each width is a program."""


class NewTokens(NamedTuple):
    """What the rows get in one round.

    Attributes:
        ids: int32 [B, T], the token that was drawn and those that follow it without a draw, padded
            on the right.
        count: int32 [B], how many of them.
        read: int32 [B], how many of them the model reads: all, or none of a row that has ended.
        reason: int32 [B], why rows have ended, as ``State.reason``.
    """

    ids: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count
    read: Array
    reason: Array


class ConstrainedSteps(NamedTuple):
    """Compiled programs of one model.

    Attributes:
        begin: ``loop.begin``.
        read: the model reads new tokens.
        again: the model reads whole rows, where rotations change.
    """

    begin: Wrapped
    read: Wrapped
    again: Wrapped


def jit_constrained_steps(model: Model) -> ConstrainedSteps:
    """The programs that ``ConstrainedLoop`` runs."""
    return ConstrainedSteps(
        begin=jax.jit(partial(loop.begin, model), static_argnames=("room", "choosing")),
        read=jax.jit(
            partial(_read, model), static_argnames=("guided",), donate_argnames=("state",)
        ),
        again=jax.jit(
            partial(_read_again, model), static_argnames=("room",), donate_argnames=("state",)
        ),
    )


class Call(NamedTuple):
    """What is asked for, as ``loop.write`` has it.

    Attributes:
        prompts: the prompts.
        settings: of each row.
        stops: of each row; none of the rows with a constraint has any.
        room: static sizes.
        choosing: static choices.
    """

    prompts: Prompts
    settings: Settings
    stops: Stops
    room: Room
    choosing: Choosing


class ConstrainedRows:
    """What the rows of a batch under constraints have written; a base of loops.

    Attributes:
        reason: int32 [B], why rows have ended, as ``State.reason``; a text that is complete ends as
            ``STOP_TEXT``.
        problems: row -> why no token may come.
        forced: int64 [B], tokens that were taken without a draw.
        state: the last state, without its cache; None before the end.

    Args:
        call: what is asked for.
        matchers: of each row; they go along with the rows.

    Raises:
        ConfigError: a row with a constraint has other stop tokens than its vocabulary, texts that
            end it, or forced tokens; or the numbers of rows differ.
    """

    def __init__(self, call: Call, matchers: Matchers) -> None:
        has_stops = np.any(np.asarray(call.stops.table.next)[:, START] != START, axis=1)
        check_rows(call.settings, matchers, has_stops)
        self._call = call
        self._matchers = matchers
        self._constrained = matchers.constrained
        self._may_force = may_force(call) & self._constrained
        self._most = np.asarray(call.settings.rules.max_new)
        rows = len(matchers)
        self._written = np.zeros(rows, np.int64)
        self.reason = np.full(rows, RUNNING, np.int32)
        self.problems: dict[int, str] = {}
        self.forced = np.zeros(rows, np.int64)
        self.state: State | None = None

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The new tokens of each row, round by round."""
        raise NotImplementedError

    def _goes_on(self) -> bool:
        failed = np.isin(self.reason, (NOT_FINITE, DRAFT_NOT_FINITE)).any()
        return not failed and bool((self.reason == RUNNING).any())

    def _take_drawn(self, state: State, mask: np.ndarray) -> list[list[int]]:
        """The token of each row that was drawn and is a part of its text."""
        token, reason = jax.device_get((state.token, state.reason))
        drawn: list[list[int]] = [[] for _ in token]
        for row in np.flatnonzero(self.reason == RUNNING).tolist():
            self.reason[row] = reason[row]
            if reason[row] == NOT_FINITE:
                continue
            if reason[row] == BANNED or not has_bit(mask[row], int(token[row])):
                self._fail(row, mask)
                continue
            if self._constrained[row]:
                self._matchers.consume_in(row, [int(token[row])])
            if reason[row] != STOP_ID:
                drawn[row] = [int(token[row])]
                self._written[row] += 1
        self._end_complete()
        return drawn

    def _fail(self, row: int, mask: np.ndarray) -> None:
        """Ends a row that can go nowhere; ``mask`` [B, …] is what its constraint allows."""
        self.reason[row] = BANNED
        self.problems[row] = self._problem(row, mask)

    def _problem(self, row: int, mask: np.ndarray) -> str:
        if not mask[row].any():
            return self._matchers.dead_end(row)
        if self._constrained[row]:
            return "other settings forbid every token that the constraint allows"
        return "the settings forbid every token"

    def _forced(self, row: int, left: int) -> list[int]:
        """The tokens that follow without a draw, of at most ``left``."""
        return self._matchers.forced_in(row)[: min(left, WIDTHS[-1] - 1)]

    def _end_complete(self) -> None:
        """Ends the rows whose text is complete, also those that are complete at their length."""
        open_rows = np.isin(self.reason, (RUNNING, LENGTH))
        complete = self._matchers.finished & self._constrained
        self.reason[open_rows & complete] = STOP_TEXT


class ConstrainedLoop(ConstrainedRows):
    """Writes the rows of a batch, some or all of them under a constraint.

    Iterating once gives the new tokens of each row, round by round. A row ends at a stop token,
    where its text satisfies the constraint and cannot go on, or at its length. A row that can go
    nowhere ends as ``BANNED``, and ``problems`` says why; the others go on.

    Where a constraint leaves one text only, the tokens that its tokenizer makes of it are taken
    without a draw, in the rows of ``may_force``.

    Args:
        steps: compiled programs of the model.
        model: the model.
        params: its parameters, as ``steps`` reads them.
        call: what is asked for.
        matchers: of each row; they go along with the rows.

    Raises:
        ConfigError: as ``ConstrainedRows``.
    """

    def __init__(
        self,
        steps: ConstrainedSteps,
        model: Model,
        params: Params,
        call: Call,
        matchers: Matchers,
    ) -> None:
        super().__init__(call, matchers)
        self._steps = steps
        self._params = params
        self._switch = model.config.rope_switch
        self._length = np.zeros(len(matchers), np.int64)

    def __iter__(self) -> Iterator[list[list[int]]]:
        call = self._call
        state = self._steps.begin(
            self._params, call.prompts, room=call.room, choosing=call.choosing
        )
        # The device reads the prompts meanwhile.
        mask = self._matchers.bitmask()
        await_allocation(state)
        self._length = np.array(state.history.prompt, np.int64)
        while True:
            settings = masked(call.settings, mask)
            state = loop.CHOOSE(state, settings, call.stops, choosing=call.choosing)
            drawn = self._take_drawn(state, mask)
            ready = self._take_forced()
            yield [one + more for one, more in zip(drawn, ready)]
            if not self._goes_on():
                break
            state = self._read(state, drawn, ready)
            # The device reads the new tokens meanwhile.
            mask = self._matchers.bitmask()
        self.state = self._last(state, ready)

    def _take_forced(self) -> list[list[int]]:
        """The tokens of each row that follow without a draw."""
        ready: list[list[int]] = [[] for _ in self.reason]
        for row in np.flatnonzero((self.reason == RUNNING) & self._may_force).tolist():
            tokens = self._forced(row, int(self._most[row] - self._written[row]))
            self._matchers.consume_in(row, tokens)
            ready[row] = tokens
            self._written[row] += len(tokens)
            self.forced[row] += len(tokens)
        self._end_complete()
        full = (self.reason == RUNNING) & (self._written >= self._most)
        self.reason[full] = LENGTH
        return ready

    def _read(
        self, state: State, drawn: Sequence[Sequence[int]], ready: Sequence[Sequence[int]]
    ) -> State:
        new = self._new_tokens(drawn, ready)
        before = self._length
        self._length = before + new.read
        if np.any((before <= self._switch) & (self._length > self._switch) & (self._switch > 0)):
            return self._steps.again(self._params, state, new, room=self._call.room)
        return self._steps.read(self._params, state, new, guided=self._call.choosing.guided)

    def _new_tokens(
        self, drawn: Sequence[Sequence[int]], ready: Sequence[Sequence[int]]
    ) -> NewTokens:
        rows = [[*one, *more] for one, more in zip(drawn, ready)]
        count = np.array([len(row) for row in rows], np.int32)
        width = next(width for width in WIDTHS if width >= count.max())
        ids = np.zeros((len(rows), width), np.int32)
        for into, row in zip(ids, rows):
            into[: len(row)] = row
        read = np.where(self.reason == RUNNING, count, 0).astype(np.int32)
        return NewTokens(*map(jnp.asarray, (ids, count, read, self.reason)))

    def _last(self, state: State, ready: Sequence[Sequence[int]]) -> State:
        """The state with the tokens of the last round, which the model does not read."""
        state = jax.device_get(without_caches(state))
        ids = np.array(state.history.ids)
        length = np.array(state.history.length)
        for row, tokens in enumerate(ready):
            ids[row, length[row] : length[row] + len(tokens)] = tokens
            length[row] += len(tokens)
        history = state.history._replace(ids=jnp.asarray(ids), length=jnp.asarray(length))
        return state._replace(history=history, reason=jnp.asarray(self.reason))


def may_force(call: Call) -> np.ndarray:
    """bool [B], the rows in which a text without alternatives may be taken without a draw: those
    in which nothing else may forbid a token, and no log-probabilities are asked for.
    """
    settings = jax.device_get(call.settings)
    rules = settings.rules
    vocab_size = rules.bias.shape[1]
    bits = np.unpackbits(
        np.ascontiguousarray(rules.allowed).view(np.uint8), axis=1, bitorder="little"
    )
    free = bits[:, :vocab_size].all(axis=1)
    free &= ~np.isneginf(rules.bias).any(axis=1) & ~np.isneginf(rules.sequence_bias).any(axis=1)
    free &= (settings.penalties.ngram == 0) & (settings.penalties.encoder_ngram == 0)
    free &= settings.watermark.bias == 0
    if call.choosing.own is not None or call.choosing.top >= 0:
        return np.zeros_like(free)
    return free


def check_rows(settings: Settings, matchers: Matchers, has_stops: np.ndarray) -> None:
    """Checks settings against constraints.

    Args:
        settings: of each row.
        matchers: of each row.
        has_stops: bool [B], rows that texts end.

    Raises:
        ConfigError: they contradict each other, or the numbers of rows differ.
    """
    rules = jax.device_get(settings.rules)
    if len(matchers) != len(rules.max_new):
        raise ConfigError(f"there are {len(matchers)} constraints for {len(rules.max_new)} rows")
    ends = set(matchers.vocabulary.stop_ids)
    for row in np.flatnonzero(matchers.constrained).tolist():
        own = {int(id) for id in rules.stop_ids[row] if id >= 0}
        if own != ends:
            raise ConfigError(
                f"row {row} ends at the tokens {sorted(own)}, and its constraint was compiled for"
                f" {sorted(ends)}; make its GrammarVocabulary with stop_ids of the row"
            )
        if has_stops[row]:
            raise ConfigError(
                f"row {row} has a constraint and texts that end it (stop), which would cut what the"
                " constraint asks for; remove one of them"
            )
        if max(rules.forced_first[row], rules.forced_last[row]) >= 0:
            raise ConfigError(
                f"row {row} has a constraint and a forced token (forced_first_id, forced_last_id);"
                " remove one of them"
            )


def masked(settings: Settings, mask: np.ndarray) -> Settings:
    """The settings with the tokens of a mask uint32 [B, ceil(V / 32)] allowed alone."""
    rules = settings.rules
    return settings._replace(rules=rules._replace(allowed=rules.allowed & mask))


def _read(model: Model, params: Params, state: State, new: NewTokens, *, guided: bool) -> State:
    """The model reads new tokens."""
    tokens = loop.for_cache(new.ids, guided)
    counts = loop.for_cache(new.read, guided)
    hidden, cache = extend(model, params, tokens, counts, state.cache)
    last = jnp.maximum(counts - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    logits = model.logits(params, hidden)[:, 0]
    return _with_new(state, new)._replace(cache=place_cache(cache), logits=logits)


def _read_again(model: Model, params: Params, state: State, new: NewTokens, *, room: Room) -> State:
    """``_read`` where a row passes ``model.config.rope_switch``: all rows are read from their
    beginning.
    """
    state = _with_new(state, new)
    history = state.history
    cache = place_cache(model.init_cache(history.ids.shape[0], room.length))
    logits, cache = read(model, params, rows_of(history.ids, history.length), cache)
    return state._replace(cache=place_cache(cache), logits=logits)


def _with_new(state: State, new: NewTokens) -> State:
    """The state with the tokens that were not drawn: those after the first."""
    after = jnp.roll(new.ids, -1, axis=1)
    history = state.history.append(after, jnp.maximum(new.count - 1, 0))
    return state._replace(history=history, reason=new.reason)
