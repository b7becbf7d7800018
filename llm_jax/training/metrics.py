"""Where a run's numbers go (JSON lines and TensorBoard events) and where its wall time went (the ledger)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CATEGORIES = ("setup", "data", "compile", "step", "evaluate", "checkpoint", "log")


class Ledger:
    """Wall time by what it was spent on. One category is open at any moment, so the shares add up to the whole."""

    def __init__(self) -> None:
        self.start = self._since = time.perf_counter()
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.current = "setup"

    def enter(self, category: str) -> str:
        """Closes the open category, opens ``category``, and returns the one closed."""
        now, before = time.perf_counter(), self.current
        self.seconds[before] += now - self._since
        self._since, self.current = now, category
        if category not in self.seconds:
            raise KeyError(f"unknown ledger category {category!r}; there are {CATEGORIES}")
        return before

    @contextmanager
    def spending(self, category: str) -> Iterator[None]:
        """Time inside goes to ``category``; afterwards the category open before is open again."""
        before = self.enter(category)
        try:
            yield
        finally:
            self.enter(before)

    def summary(self) -> dict[str, Any]:
        """Seconds by category, and the wall time they sum to."""
        self.enter(self.current)
        return {"seconds": dict(self.seconds), "wall": self._since - self.start}


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and their numbers to TensorBoard event files in ``tensorboard/``."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        """Drops the records after ``resume_step`` that a killed run had written beyond its last checkpoint."""
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [r for r in read_metrics(self.path) if r["step"] <= resume_step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(_line(r) for r in kept))
            partial.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        # Imported here: a machine that only benchmarks or imports the step does without it.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1, flush_secs=30)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record: ``{"kind": kind, "step": step, **values}``."""
        self._file.write(_line({"kind": kind, "step": step, **values}))
        for name, value in values.items():
            if isinstance(value, float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
