"""Beam search under constraints: a loop on the host around the steps of ``program``.

The rows of a prompt's beams follow its constraint, each at its own place. A text that satisfies its
constraint and cannot go on ends at once, as in ``decode.constrained``, without a stop token: its
score is the sum of the log-probabilities of its tokens. One that can go on ends at a stop token.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.decode.beams.program import (
    BeamForm,
    BeamSettings,
    Choice,
    Found,
    State,
    begin,
    choose,
    found_of,
    read_choice,
    searching,
    settle,
)
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.programs import await_allocation
from llm_jax.models import Model
from llm_jax.ops.sampling.settings import Settings
from llm_jax.types import Params


class Given(NamedTuple):
    """What a search is given, without what is static; as of ``program.search_beams``."""

    params: Params
    settings: Settings
    beams: BeamSettings


class Rows(NamedTuple):
    """What the host sees of a step.

    Attributes:
        alive: bool [B * K], rows of which a text goes on.
        unfinished: bool [], whether any search goes on.
    """

    alive: Array
    unfinished: Array


class Result(NamedTuple):
    """What a search under constraints returns.

    Attributes:
        found: as of ``program.search_beams``.
        dead_ends: prompt -> why no token may come after one of its texts.
    """

    found: Found
    dead_ends: dict[int, str]


def search_constrained(
    model: Model,
    given: Given,
    tokens: np.ndarray,
    lengths: np.ndarray,
    form: BeamForm,
    matchers: Matchers,
) -> Result:
    """``program.search_beams`` under constraints.

    Args:
        model: the model.
        given: its parameters, and settings.
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B], at least 1.
        form: static.
        matchers: of each prompt; they stay as they are.
    """
    prompt = np.repeat(np.arange(len(lengths)), form.beams)
    of_rows = matchers.gather(prompt.tolist())
    dead_ends: dict[int, str] = {}
    static = {"model": model, "form": form}
    state, rows = _begin(given, tokens, lengths, **static)
    await_allocation(state)
    unfinished = True
    while unfinished:
        alive = np.asarray(rows.alive)
        allowed = _masks(of_rows, alive)
        for row in np.flatnonzero(~allowed.any(axis=1)).tolist():
            dead_ends[int(prompt[row])] = of_rows.dead_end(row)
        state, choice, rows = _choose(given, state, jnp.asarray(allowed), **static)
        chosen, seen = jax.device_get((choice, rows))
        of_rows = of_rows.gather(chosen.parent)
        taken = [[int(t)] if on else [] for t, on in zip(chosen.token, seen.alive)]
        of_rows.consume(taken)
        complete = of_rows.finished & of_rows.constrained & seen.alive
        unfinished = bool(seen.unfinished)
        if complete.any():
            state, rows = _settle(given, state, jnp.asarray(complete), **static)
            unfinished = bool(rows.unfinished)
        if unfinished:
            state = _read(given, state, choice, **static)
    return Result(_found(given, state, **static), dead_ends)


def is_complete(matchers: Matchers, prompt: int, ids: list[int]) -> bool:
    """Whether the new tokens of a prompt satisfy its constraint, and no more may come."""
    if not matchers.constrained[prompt]:
        return False
    own = matchers.gather([prompt])
    own.consume([ids])
    return own.finished_in(0)


def _masks(matchers: Matchers, alive: np.ndarray) -> np.ndarray:
    """uint32 [B * K, ceil(V / 32)]; rows without a text allow everything."""
    return np.where(alive[:, None], matchers.bitmask(), np.uint32(2**32 - 1))


def _rows(state: State) -> Rows:
    groups = state.groups
    alive = groups.open[..., None] & (groups.running.score > -jnp.inf)
    return Rows(alive.swapaxes(0, 1).reshape(-1), state.unfinished)


@partial(jax.jit, static_argnames=("model", "form"))
def _begin(
    given: Given, tokens: Array, lengths: Array, *, model: Model, form: BeamForm
) -> tuple[State, Rows]:
    search = searching(model, given.params, given.settings, given.beams, form)
    state = begin(search, tokens, lengths)
    return state, _rows(state)


@partial(jax.jit, static_argnames=("model", "form"), donate_argnames=("state",))
def _choose(
    given: Given, state: State, allowed: Array, *, model: Model, form: BeamForm
) -> tuple[State, Choice, Rows]:
    search = searching(model, given.params, given.settings, given.beams, form)
    state, choice = choose(search, state, allowed)
    return state, choice, _rows(state)


@partial(jax.jit, static_argnames=("model", "form"), donate_argnames=("state",))
def _settle(
    given: Given, state: State, complete: Array, *, model: Model, form: BeamForm
) -> tuple[State, Rows]:
    search = searching(model, given.params, given.settings, given.beams, form)
    state = settle(search, state, complete)
    return state, _rows(state)


@partial(jax.jit, static_argnames=("model", "form"), donate_argnames=("state",))
def _read(given: Given, state: State, choice: Choice, *, model: Model, form: BeamForm) -> State:
    search = searching(model, given.params, given.settings, given.beams, form)
    return read_choice(search, state, choice)


@partial(jax.jit, static_argnames=("model", "form"))
def _found(given: Given, state: State, *, model: Model, form: BeamForm) -> Found:
    search = searching(model, given.params, given.settings, given.beams, form)
    return found_of(search, state)
