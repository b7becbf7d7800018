"""A profile of chosen steps, for TensorBoard, XProf or Perfetto: where the device's time went,
operation by operation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Writes the trace of steps ``first`` to ``first + count - 1`` into a folder; nothing when
    ``steps`` is empty.

    steps: () or (first, count), optimizer steps counted from 1. Every host writes its own file.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...] = ()) -> None:
        first, count = steps or (0, 0)
        self._folder, self._first, self._last, self._on = folder, first, first + count - 1, False

    def before(self, step: int, running: Any) -> None:
        """Starts the trace if ``step`` is the first; ``running``, arrays of the step before, are
        waited for.
        """
        if step == self._first:
            jax.block_until_ready(running)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, running: Any) -> None:
        """Ends the trace if ``step`` is the last, whose arrays ``running`` are waited for."""
        if self._on and step >= self._last:
            jax.block_until_ready(running)
            self.close()

    def close(self) -> None:
        """Writes what there is of a trace that has begun."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
