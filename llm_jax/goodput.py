"""Goodput: the wall time of a run by category."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CATEGORIES = ("setup", "data", "compile", "step", "evaluate", "checkpoint", "log")


class Goodput:
    """The wall time of a run by category.

    Exactly one category is open at any moment, so the categories add up to the whole.

    Attributes:
        seconds: by category.
        current: the open category.
        moves: how many times a category was entered. Every host has the same number at the same
            place of the program.
        step: optimizer steps started.
        to_first_step: seconds from the start to the end of the first step; None before.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.current = "setup"
        self.moves = 0
        self.step = 0
        self.to_first_step: float | None = None
        self._since = self.start

    def enter(self, category: str) -> str:
        """Closes the open category, opens ``category``, and returns the one closed.

        Raises:
            KeyError: the category does not exist.
        """
        now = time.perf_counter()
        before = self.current
        self.seconds[before] += now - self._since
        self._since = now
        self.current = category
        self.moves += 1
        if category not in self.seconds:
            raise KeyError(f"unknown goodput category {category!r}; there are {CATEGORIES}")
        return before

    def idle(self) -> float:
        """Seconds since the open category was opened."""
        return time.perf_counter() - self._since

    def rename(self, category: str) -> None:
        """Counts the time since the open category was opened as ``category``."""
        self.current = category

    @contextmanager
    def spending(self, category: str) -> Iterator[None]:
        """Counts the body as ``category`` and then reopens the category before it."""
        before = self.enter(category)
        yield
        # After an error the category stays open, to show where the error was.
        self.enter(before)

    def first_step_done(self) -> None:
        """Records the time from the start to the end of the first step."""
        self.to_first_step = time.perf_counter() - self.start

    def summary(self) -> dict[str, Any]:
        """Seconds by category, their sum, and the seconds to the end of the first step, if done."""
        self.enter(self.current)
        summary: dict[str, Any] = {
            "seconds": dict(self.seconds),
            "wall": self._since - self.start,
        }
        if self.to_first_step is not None:
            summary["start_to_first_step"] = self.to_first_step
        return summary
