"""SIGINT and SIGTERM: they end a run at once while it starts, because there is nothing to save, and
after the current step in the training loop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llm_jax.progress import note

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _never() -> bool:
    return False


# Whether a signal ends the process at once; ``starting`` sets it.
_ends_at_once: Callable[[], bool] = _never


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint.

    Attributes:
        step: of the checkpoint.
        signum: the signal.
    """

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(
            f"stopped at step {step} by {signal.Signals(signum).name}; the checkpoint of step"
            f" {step} is saved"
        )
        self.step = step
        self.signum = signum


@contextmanager
def starting(end: Callable[[int], None], done: Callable[[], bool]) -> Iterator[None]:
    """Within the block and until the run has started, a signal ends the process at once.

    A thread of its own calls ``end``, because the main thread may be in a compilation or a
    collective for minutes, in which no handler of Python runs. Afterwards SIGINT interrupts, and
    SIGTERM is left to the training loop.

    Args:
        end: called with the number of the signal; ends the process.
        done: whether the run has started.
    """
    global _ends_at_once

    def watch_signals(descriptor: int) -> None:
        while True:
            data = os.read(descriptor, 1)
            if not data:
                return
            if data[0] in SIGNALS and not done():
                end(data[0])

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT and done():
            raise KeyboardInterrupt

    def has_not_started() -> bool:
        return not done()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    thread = threading.Thread(target=watch_signals, args=(read,), daemon=True)
    thread.start()
    handlers = {signum: signal.signal(signum, on_signal) for signum in SIGNALS}
    descriptor = signal.set_wakeup_fd(write)
    _ends_at_once = has_not_started
    try:
        yield
    finally:
        _ends_at_once = _never
        signal.set_wakeup_fd(descriptor)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        os.close(write)
        thread.join()
        os.close(read)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that collects SIGINT and SIGTERM within the block; a second SIGINT interrupts."""
    got: list[int] = []

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if got and signum == signal.SIGINT:
            raise KeyboardInterrupt
        got.append(signum)
        if not _ends_at_once():
            note("stopping after this step and saving … (Ctrl-C again to quit without saving)")

    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    handlers = {signum: signal.signal(signum, on_signal) for signum in SIGNALS}
    try:
        yield got
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
