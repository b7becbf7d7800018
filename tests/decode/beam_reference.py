"""Beam search by its definition, one text at a time in plain Python.

The compiled search must find what this one finds.

A model is a function from a text (a tuple of new tokens) to the log-probabilities of the next one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest

from llm_jax.decode.beams import front, program

LogProbabilities = Callable[[tuple[int, ...]], np.ndarray]


@contextlib.contextmanager
def biases_only() -> Iterator[None]:
    """Within it no other processor runs: they have tests of their own, and take half of the time
    that a search compiles.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "process", lambda scores, of, *_, **__: scores + of.rules.bias)
        front._run.clear_cache()
        yield
    front._run.clear_cache()


class Text(NamedTuple):
    """A text with its score, the best of which sorts first."""

    score: float
    ids: tuple[int, ...]


class Case(NamedTuple):
    """A search. mode: transformers' early_stopping."""

    beams: int
    most: int
    stop_ids: tuple[int, ...]
    length_penalty: float = 1.0
    mode: bool | str = False
    groups: int = 1
    diversity: float = 0.0


def all_texts(model: LogProbabilities, case: Case) -> list[Text]:
    """Every text that can be finished, the best first."""
    texts = []
    running = [Text(0.0, ())]
    for length in range(1, case.most + 1):
        longer = [extended(text, token, model) for text in running for token in vocabulary(model)]
        ended = [t for t in longer if t.ids[-1] in case.stop_ids or length == case.most]
        texts += [Text(t.score / length**case.length_penalty, t.ids) for t in ended]
        running = [t for t in longer if t.ids[-1] not in case.stop_ids]
    return sorted(texts, reverse=True)


def vocabulary(model: LogProbabilities) -> range:
    return range(len(model(())))


def extended(text: Text, token: int, model: LogProbabilities, less: float = 0.0) -> Text:
    score = text.score + float(model(text.ids)[token]) - less
    return Text(score, (*text.ids, token))


class Search:
    """The search of one group."""

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.running = [Text(0.0, ())]
        self.finished: list[Text] = []
        self.chosen: list[Text] = []
        self.open = True

    def step(self, model: LogProbabilities, case: Case, taken: dict[int, int]) -> None:
        longer = [
            extended(text, token, model, case.diversity * taken.get(token, 0))
            for text in self.running
            for token in vocabulary(model)
        ]
        longer = sorted((t for t in longer if t.score > -np.inf), reverse=True)
        length = len(longer[0].ids)
        ends = [t.ids[-1] in case.stop_ids or length == case.most for t in longer]
        new = [t for t, end in zip(longer[: self.beams], ends) if end]
        scored = [Text(t.score / length**case.length_penalty, t.ids) for t in new]
        self.finished = sorted(self.finished + scored, reverse=True)[: self.beams]
        self.chosen = [t for t in longer if t.ids[-1] not in case.stop_ids][: self.beams]
        self.running = self.chosen if length < case.most else []
        self.open = self.goes_on(case, length)

    def goes_on(self, case: Case, length: int) -> bool:
        if not self.running:
            return False
        if len(self.finished) < self.beams:
            return True
        if case.mode is True:
            return False
        if case.mode == "never" and case.length_penalty > 0:
            length = case.most
        return self.running[0].score / length**case.length_penalty > self.finished[-1].score


def beam_search(model: LogProbabilities, case: Case) -> list[Text]:
    """The texts of all groups, the best first."""
    searches = [Search(case.beams // case.groups) for _ in range(case.groups)]
    while any(search.open for search in searches):
        taken: dict[int, int] = {}
        for search in (s for s in searches if s.open):
            search.step(model, case, taken)
            for text in search.chosen:
                taken[text.ids[-1]] = taken.get(text.ids[-1], 0) + 1
    found = itertools.chain.from_iterable(search.finished for search in searches)
    return sorted(found, reverse=True)


def contains(ids: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    """Whether the phrase is somewhere in the text."""
    places = range(len(ids) - len(phrase) + 1)
    return any(ids[at : at + len(phrase)] == phrase for at in places)
