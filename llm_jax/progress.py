"""Live progress: a bar on a terminal or in a notebook, plain lines elsewhere.

    with progress("tokenising", total=10_000, unit="B") as bar:
        bar.advance(500, tokens_s=1_200_000)
        note("one line above the bar")

Outside of notebooks everything goes to stderr, so that what a program prints to stdout can be piped
on. rich is imported only when a bar is drawn on a terminal.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PLAIN_SECONDS = 5.0
NOTEBOOK_SECONDS = 0.2
_BYTES = ("B", "kB", "MB", "GB", "TB")

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
    bar = _make_bar(description, total, unit)
    _running.append(bar)
    try:
        with bar:
            yield bar
    finally:
        _running.remove(bar)


def _make_bar(description: str, total: float | None, unit: str) -> Any:
    if _silent:
        return _NoBar()
    if _in_notebook():
        return _NotebookBar(description, total, unit)
    if sys.stderr.isatty():
        return _RichBar(description, total, unit)
    return _PlainBar(description, total, unit)


def _in_notebook() -> bool:
    """Whether this process answers a notebook. IPython on a terminal has no kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def _quantity(n: float, unit: str) -> str:
    if unit != "B":
        return f"{n:,.0f} {unit}".rstrip()
    power = 0
    while n >= 1000 and power < len(_BYTES) - 1:
        n /= 1000
        power += 1
    return f"{n:.3g} {_BYTES[power]}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _fields(fields: dict[str, Any]) -> str:
    return "  ".join(f"{_field_name(name)} {_value(value)}" for name, value in fields.items())


def _field_name(name: str) -> str:
    """``tokens/s`` for ``tokens_s``."""
    return name.replace("_", "/", 1) if name.endswith("_s") else name


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def advance(self, n: float = 1, **fields: Any) -> None:
        pass

    def print(self, text: str) -> None:
        pass


class _Counting:
    """What has been done of a stage, as text; a subclass shows it."""

    def __init__(self, description: str, total: float | None, unit: str):
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self.fields: dict[str, Any] = {}
        self.start = time.monotonic()

    def count(self, n: float, fields: dict[str, Any]) -> None:
        self.done += n
        self.fields.update(fields)

    @property
    def share(self) -> float | None:
        """The part that is done, from 0 to 1; None where the total is not known."""
        return min(self.done / self.total, 1.0) if self.total else None

    def running_line(self, now: float) -> str:
        parts = [_quantity(self.done, self.unit)]
        if self.total:
            share = self.share or 0.0
            parts = [f"{share:.0%}", f"{parts[0]} of {_quantity(self.total, self.unit)}"]
            if share:
                parts.append(f"{_duration((now - self.start) * (1 / share - 1))} left")
        return f"{self.description}: " + "  ".join(filter(None, [*parts, _fields(self.fields)]))

    def final_line(self, whole: bool) -> str:
        word = "done" if whole else "stopped"
        elapsed = _duration(time.monotonic() - self.start)
        extra = "  ".join(filter(None, [_quantity(self.done, self.unit), _fields(self.fields)]))
        return f"{self.description}: {word} in {elapsed}  {extra}"


class _PlainBar(_Counting):
    def __enter__(self) -> _PlainBar:
        self.last = self.start
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.print(self.final_line(kind is None))

    def advance(self, n: float = 1, **fields: Any) -> None:
        self.count(n, fields)
        now = time.monotonic()
        if now - self.last >= PLAIN_SECONDS:
            self.last = now
            self.print(self.running_line(now))

    def print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _NotebookBar(_Counting):
    """One output of a notebook cell, written over as the stage goes on. It needs no widgets, so
    that it is kept in the saved notebook as its last state.
    """

    def __enter__(self) -> _NotebookBar:
        from IPython.display import display

        self.last = self.start
        self.handle = display(self._shown(self.running_line(self.start)), raw=True, display_id=True)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.handle.update(self._shown(self.final_line(kind is None)), raw=True)

    def advance(self, n: float = 1, **fields: Any) -> None:
        self.count(n, fields)
        now = time.monotonic()
        if now - self.last >= NOTEBOOK_SECONDS:
            self.last = now
            self.handle.update(self._shown(self.running_line(now)), raw=True)

    def print(self, text: str) -> None:
        print(text, flush=True)

    def _shown(self, line: str) -> dict[str, str]:
        bar = "" if self.share is None else f'<progress value="{self.share:.4f}"></progress> '
        return {"text/plain": line, "text/html": f"{bar}<code>{html.escape(line)}</code>"}


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
