"""Constrained decoding with a draft: the model verifies several tokens of each row in one call.

In each round tokens are drafted on the device, the host follows the constraint along them, and the
model verifies them under the masks of all places. Texts have the same distribution as those of
``ConstrainedLoop``, and greedy texts are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.stages import Wrapped

from llm_jax.decode import loop, speculative
from llm_jax.decode.completions import without_caches
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrained import Call, ConstrainedRows, masked
from llm_jax.decode.constrained_plan import Plan, has_bit, planned
from llm_jax.decode.drafts import Pair, Weights
from llm_jax.decode.programs import await_allocation
from llm_jax.decode.speculative import Proposal
from llm_jax.decode.state import BANNED, RUNNING, STOP_ID, STOP_TEXT, Choosing, State, Stops
from llm_jax.ops.sampling.settings import Settings


class Masked(NamedTuple):
    """A ``Plan`` as the device reads it, without tokens and counts."""

    given: Array
    masks: Array
    same: Array


class Round(NamedTuple):
    """What the rows got in one round.

    Attributes:
        ids: int32 [B, G + 1], new tokens, padded on the right.
        new: int32 [B], how many.
        used: int32 [B], verified tokens among them, with one that ended a row.
        token: int32 [B], as ``State.token``.
        reason: int32 [B], as ``State.reason``.
        behind: int32 [B], tokens that the draft's own model has not read; 0 without one.
    """

    ids: Array
    new: Array
    used: Array
    token: Array
    reason: Array
    behind: Array


class DraftedSteps(NamedTuple):
    """Compiled programs of a pair.

    Attributes:
        begin: ``speculative.begin``.
        propose: ``speculative.propose``.
        verify: ``speculative.verify`` under masks.
        catch_up: ``speculative.catch_up``.
    """

    begin: Wrapped
    propose: Wrapped
    verify: Wrapped
    catch_up: Wrapped


def jit_drafted_steps(pair: Pair) -> DraftedSteps:
    """The programs that ``DraftedLoop`` runs. All but ``begin`` donate their state."""
    choosing = ("choosing",)
    donated = ("state",)
    return DraftedSteps(
        begin=jax.jit(partial(speculative.begin, pair), static_argnames=("room", "choosing")),
        propose=jax.jit(
            partial(speculative.propose, pair), static_argnames=choosing, donate_argnames=donated
        ),
        verify=jax.jit(partial(_verify, pair), static_argnames=choosing, donate_argnames=donated),
        catch_up=jax.jit(
            partial(speculative.catch_up, pair),
            static_argnames=("guided",),
            donate_argnames=donated,
        ),
    )


class DraftedLoop(ConstrainedRows):
    """``ConstrainedLoop`` with a draft; iterating and results are the same.

    Attributes:
        drafted: int64 [B], drafted tokens of each row that were verified.
        accepted: int64 [B], those that became a part of its text, or ended it.

    Args:
        steps: compiled programs of the pair.
        weights: parameters of both.
        call: as of ``ConstrainedLoop``.
        matchers: as of ``ConstrainedLoop``.

    Raises:
        ConfigError: as ``ConstrainedLoop``.
    """

    def __init__(
        self, steps: DraftedSteps, weights: Weights, call: Call, matchers: Matchers
    ) -> None:
        super().__init__(call, matchers)
        self._steps = steps
        self._weights = weights
        rows = len(matchers)
        # Tokens of each row that come next without a draw.
        self._ready: list[list[int]] = [[] for _ in range(rows)]
        self._texts: list[list[int]] = [[] for _ in range(rows)]
        self._behind = np.zeros(rows, np.int32)
        self.drafted = np.zeros(rows, np.int64)
        self.accepted = np.zeros(rows, np.int64)

    def __iter__(self) -> Iterator[list[list[int]]]:
        call = self._call
        state = self._steps.begin(
            self._weights, call.prompts, room=call.room, choosing=call.choosing
        )
        mask = self._matchers.bitmask()
        settings = masked(call.settings, mask)
        await_allocation(state)
        state = loop.CHOOSE(state, settings, call.stops, choosing=call.choosing)
        new = self._take_drawn(state, mask)
        for row in self._running:
            self._ready[row] = self._following(row, 0)
        state = state._replace(logits=None)
        self._keep(new)
        yield new
        while self._goes_on():
            state, new = self._round(state)
            self._keep(new)
            yield new
        self.state = self._last(state)

    @property
    def _running(self) -> list[int]:
        return np.flatnonzero(self.reason == RUNNING).tolist()

    def _following(self, row: int, new: int) -> list[int]:
        """The tokens that follow without a draw, after ``new`` more than ``_written``."""
        if not self._may_force[row]:
            return []
        return self._forced(row, int(self._most[row] - self._written[row]) - new)

    def _round(self, state: State) -> tuple[State, list[list[int]]]:
        call = self._call
        choosing = call.choosing
        state = state._replace(reason=jnp.asarray(self.reason))
        if self._behind[self._running].max() > 2:
            state = self._steps.catch_up(self._weights, state=state, guided=choosing.guided)
        proposal, state = self._steps.propose(
            self._weights, state=state, settings=call.settings, choosing=choosing
        )
        tokens, counts = jax.device_get((proposal.tokens, proposal.counts))
        plan = planned(
            self._matchers,
            tokens,
            counts,
            rows=self._running,
            ready=self._ready,
            following=self._following,
        )
        state, found = self._steps.verify(
            self._weights,
            state=state,
            proposal=proposal._replace(
                tokens=jnp.asarray(plan.tokens), counts=jnp.asarray(plan.counts)
            ),
            under=Masked(*map(jnp.asarray, (plan.given, plan.masks, plan.same))),
            settings=call.settings,
            stops=call.stops,
            choosing=choosing,
        )
        found = jax.device_get(found)
        self._behind = found.behind
        new: list[list[int]] = [[] for _ in self.reason]
        for row in self._running:
            new[row] = self._taken(row, plan, found)
        return state, new

    def _taken(self, row: int, plan: Plan, found: Round) -> list[int]:
        """The new tokens of a row, which its matcher takes."""
        ids = found.ids[row, : found.new[row]].tolist()
        reason = int(found.reason[row])
        self.reason[row] = reason
        used = int(found.used[row])
        for place, token in enumerate(ids):
            if not self._take(row, token, plan, place):
                return ids[:place]
            if self._constrained[row] and self._matchers.finished_in(row):
                self.reason[row] = STOP_TEXT
                ids = ids[: place + 1]
                used = min(used, place + 1)
                break
        else:
            if reason in (BANNED, STOP_ID):
                self._end(row, reason, int(found.token[row]), plan.masks[len(ids)])
        given = plan.given[:, row]
        self.drafted[row] += plan.counts[row] - given.sum()
        self.accepted[row] += used - given[:used].sum()
        return ids

    def _take(self, row: int, token: int, plan: Plan, place: int) -> bool:
        """Takes one new token; False where the row has a problem."""
        if not has_bit(plan.masks[place, row], token):
            self._fail(row, plan.masks[place])
            return False
        if self._constrained[row]:
            self._matchers.consume_in(row, [token])
        self._written[row] += 1
        if place < plan.counts[row] and plan.given[place, row]:
            self._ready[row].pop(0)
            self.forced[row] += 1
        else:
            self._ready[row] = self._following(row, 0)
        return True

    def _end(self, row: int, reason: int, token: int, mask: np.ndarray) -> None:
        """Ends a row at a stop token, or where no token may come."""
        if reason == BANNED or not has_bit(mask[row], token):
            self._fail(row, mask)
        elif self._constrained[row]:
            self._matchers.consume_in(row, [token])

    def _keep(self, new: list[list[int]]) -> None:
        for text, tokens in zip(self._texts, new):
            text += tokens

    def _last(self, state: State) -> State:
        """The state with the tokens that rows have kept, and the counts of drafted ones."""
        state = jax.device_get(without_caches(state))
        ids = np.array(state.history.ids)
        length = np.array(state.history.length)
        for row, text in enumerate(self._texts):
            start = state.history.prompt[row]
            ids[row, start : start + len(text)] = text
            length[row] = start + len(text)
        history = state.history._replace(ids=jnp.asarray(ids), length=jnp.asarray(length))
        draft = state.draft._replace(
            drafted=self.drafted.astype(np.int32), accepted=self.accepted.astype(np.int32)
        )
        return state._replace(history=history, reason=jnp.asarray(self.reason), draft=draft)


def _verify(
    pair: Pair,
    weights: Weights,
    state: State,
    proposal: Proposal,
    under: Masked,
    settings: Settings,
    stops: Stops,
    *,
    choosing: Choosing,
) -> tuple[State, Round]:
    """``speculative.verify`` of a plan."""
    before = state.history.length
    used = state.draft.accepted
    most = proposal.tokens.shape[0]
    logits = proposal.logits
    if logits is not None:
        # Given tokens may have come without any draft; any finite distribution accepts them.
        logits = jnp.where(under.given[..., None], 0.0, logits)
    state = speculative.cut_draft(state, before + under.same, guided=choosing.guided, most=most)
    state = speculative.verify(
        pair,
        weights,
        state,
        proposal._replace(logits=logits),
        settings,
        stops,
        choosing=choosing,
        allowed=settings.rules.allowed[None] & under.masks,
    )
    history = state.history
    behind = jnp.zeros_like(before)
    if state.draft.cache is not None:
        behind = history.length - state.draft.cache.length[: before.shape[0]]
    return state, Round(
        ids=speculative.tokens_from(history, before, most + 1),
        new=history.length - before,
        used=state.draft.accepted - used,
        token=state.token,
        reason=state.reason,
        behind=behind,
    )
