"""SIGINT and SIGTERM: while a run starts they end it at once, for there is nothing to save; in the
loop they wait for the step.
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


def _at_once() -> bool:
    return False


class Stopped(Exception):
    """The run was asked to stop and has saved; carries the step and the signal."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(
            f"stopped at step {step} by {signal.Signals(signum).name}; the checkpoint of step"
            f" {step} is saved"
        )
        self.step, self.signum = step, signum


@contextmanager
def starting(end: Callable[[int], None], done: Callable[[], bool]) -> Iterator[None]:
    """Inside, and until ``done()``, a signal calls ``end(signum)`` from a thread of its own: the
    main one may be inside of a compilation or of a collective for minutes, where no handler of
    Python runs. Afterwards SIGINT interrupts, and SIGTERM is for the loop.
    """
    global _at_once

    def mind() -> None:
        while data := os.read(read, 1):
            if data[0] in SIGNALS and not done():
                end(data[0])

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT and done():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    thread = threading.Thread(target=mind, daemon=True)
    thread.start()
    handlers, descriptor = (
        {s: signal.signal(s, on_signal) for s in SIGNALS},
        signal.set_wakeup_fd(write),
    )

    def _at_once():
        return not done()

    try:
        yield
    finally:

        def _at_once():
            return False

        signal.set_wakeup_fd(descriptor)
        for s, handler in handlers.items():
            signal.signal(s, handler)
        os.close(write)
        thread.join()
        os.close(read)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT or SIGTERM instead of the process dying; a second Ctrl-C
    interrupts at once.
    """
    got: list[int] = []

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if got and signum == signal.SIGINT:
            raise KeyboardInterrupt
        got.append(signum)
        if not _at_once():
            note("stopping after this step and saving … (Ctrl-C again to quit without saving)")

    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    before = {s: signal.signal(s, on_signal) for s in SIGNALS}
    try:
        yield got
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
