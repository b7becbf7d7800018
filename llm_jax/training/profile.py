"""A profile of chosen steps, for TensorBoard, XProf or Perfetto: the device's time by operation."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from llm_jax.files import local_folder


class Profile:
    """Writes the trace of some steps into a folder; every host writes its own file.

    Args:
        folder: where the trace is written.
        steps: (first, count), optimizer steps counted from 1; () writes nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...] = ()) -> None:
        first, count = steps or (0, 0)
        self._folder = folder
        self._first = first
        self._last = first + count - 1
        self._on = False
        self._writing = ExitStack()

    def before(self, step: int, running: Any) -> None:
        """Starts the trace if ``step`` is the first, after waiting for the arrays ``running`` of
        the step before.
        """
        if step == self._first:
            jax.block_until_ready(running)
            local = self._writing.enter_context(local_folder(self._folder))
            jax.profiler.start_trace(local)
            self._on = True

    def after(self, step: int, running: Any) -> None:
        """Ends the trace if ``step`` is the last, after waiting for its arrays ``running``."""
        if self._on and step >= self._last:
            jax.block_until_ready(running)
            self.close()

    def close(self) -> None:
        """Writes a trace that was started and not ended."""
        if self._on:
            self._on = False
            with self._writing:
                jax.profiler.stop_trace()
