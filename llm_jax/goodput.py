"""Goodput: the wall time of a run by what it was spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CATEGORIES = ("setup", "data", "compile", "step", "evaluate", "checkpoint", "log")


class Goodput:
    """Wall time by what it was spent on. One category is open at any moment, so the shares add up
    to the whole.

    moves: how many categories were entered, the same number at the same place of the program on
    every host. step: optimizer steps started.
    """

    def __init__(self) -> None:
        self.start = self._since = time.perf_counter()
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.current, self.moves, self.step = "setup", 0, 0
        self.to_first_step: float | None = None

    def enter(self, category: str) -> str:
        """Closes the open category, opens ``category``, and returns the one closed."""
        now, before = time.perf_counter(), self.current
        self.seconds[before] += now - self._since
        self._since, self.current, self.moves = now, category, self.moves + 1
        if category not in self.seconds:
            raise KeyError(f"unknown ledger category {category!r}; there are {CATEGORIES}")
        return before

    def idle(self) -> float:
        """Seconds since the open category was opened."""
        return time.perf_counter() - self._since

    def rename(self, category: str) -> None:
        """The open category turns out to be another: its time so far goes there."""
        self.current = category

    @contextmanager
    def spending(self, category: str) -> Iterator[None]:
        """Time inside goes to ``category``; afterwards the category open before is open again."""
        before = self.enter(category)
        yield
        # After an error the category stays open: it says where.
        self.enter(before)

    def first_step_done(self) -> None:
        """Notes how long it took from the start to here."""
        self.to_first_step = time.perf_counter() - self.start

    def summary(self) -> dict[str, Any]:
        """Seconds by category, the wall time they sum to, and the seconds from the start to the end
        of the first step, if it came.
        """
        self.enter(self.current)
        first = {} if self.to_first_step is None else {"start_to_first_step": self.to_first_step}
        return {"seconds": dict(self.seconds), "wall": self._since - self.start, **first}
