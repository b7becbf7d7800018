"""Live progress: a bar on a terminal, plain lines elsewhere.

    with progress("tokenising", total=10_000, unit="B") as bar:
        bar.advance(500, tokens_s=1_200_000)
        note("one line above the bar")

Everything goes to stderr, so that what a program prints to stdout can be piped on. rich is imported
only when a bar is drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PLAIN_SECONDS = 5.0

_running: list[Bar] = []
_silent = False


class Bar(Protocol):
    """What ``progress`` hands to its block."""

    def advance(self, n: float = 1, **fields: Any) -> None:
        """Count ``n`` units more; ``fields`` (loss, tokens_s, …) replace the free fields shown
        beside the count.
        """

    def print(self, text: str) -> None:
        """Print one line without disturbing the bar."""


def silence() -> None:
    """No bars and notes from now on: of the processes of one run, one reports."""
    global _silent
    _silent = True


def note(text: str) -> None:
    """Print a line above the running bar, or plainly to stderr if there is none."""
    if _silent:
        return
    if _running:
        _running[-1].print(text)
    else:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, total: float | None, unit: str = "") -> Iterator[Bar]:
    """Show progress of a long stage while the block runs.

    Args:
        description: what is being done; a few words.
        total: how many units there are, None if unknown.
        unit: name of a unit; ``"B"`` prints bytes as kB, MB, GB.
    """
    bar = (
        _NoBar()
        if _silent
        else (_RichBar if sys.stderr.isatty() else _PlainBar)(description, total, unit)
    )
    _running.append(bar)
    try:
        with bar:
            yield bar
    finally:
        _running.remove(bar)


def _quantity(n: float, unit: str) -> str:
    if unit != "B":
        return f"{n:,.0f} {unit}".rstrip()
    for name in ("B", "kB", "MB", "GB"):
        if n < 1000:
            break
        n, name = n / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[name]
    return f"{n:.3g} {name}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _fields(fields: dict[str, Any]) -> str:
    shown = []
    for name, value in fields.items():
        text = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else None
        text = text or (
            f"{value:.4g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        shown.append(f"{name.replace('_', '/', 1) if name.endswith('_s') else name} {text}")
    return "  ".join(shown)


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def advance(self, n: float = 1, **fields: Any) -> None:
        pass

    def print(self, text: str) -> None:
        pass


class _PlainBar:
    def __init__(self, description: str, total: float | None, unit: str):
        self.description, self.total, self.unit = description, total, unit
        self.done, self.fields = 0.0, {}
        self.start = self.last = time.monotonic()

    def __enter__(self) -> _PlainBar:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        elapsed = _duration(time.monotonic() - self.start)
        word = "done" if kind is None else "stopped"
        extra = "  ".join(filter(None, [_quantity(self.done, self.unit), _fields(self.fields)]))
        self.print(f"{self.description}: {word} in {elapsed}  {extra}")

    def advance(self, n: float = 1, **fields: Any) -> None:
        self.done += n
        self.fields.update(fields)
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        parts = [_quantity(self.done, self.unit)]
        if self.total:
            share = min(self.done / self.total, 1.0)
            parts = [f"{share:.0%}", f"{parts[0]} of {_quantity(self.total, self.unit)}"]
            if self.done:
                parts.append(f"{_duration((now - self.start) * (1 / share - 1))} left")
        self.print(
            f"{self.description}: " + "  ".join(filter(None, [*parts, _fields(self.fields)]))
        )

    def print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _RichBar:
    def __init__(self, description: str, total: float | None, unit: str):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.unit, self.total, self.done, self.fields = unit, total, 0.0, {}
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
        ]
        columns += [TextColumn("{task.fields[count]}"), TextColumn("{task.fields[free]}")]
        columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self.rich = Progress(*columns, console=Console(stderr=True))
        self.task = self.rich.add_task(description, total=total, count=self._count(), free="")

    def _count(self) -> str:
        done = _quantity(self.done, self.unit)
        return done if self.total is None else f"{done} of {_quantity(self.total, self.unit)}"

    def __enter__(self) -> _RichBar:
        self.rich.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.rich.stop()

    def advance(self, n: float = 1, **fields: Any) -> None:
        self.done += n
        self.fields.update(fields)
        self.rich.update(self.task, advance=n, count=self._count(), free=_fields(self.fields))

    def print(self, text: str) -> None:
        self.rich.console.print(text, markup=False, highlight=False)
