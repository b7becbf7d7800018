"""Watching the other hosts of a run from a thread, so that one that died, hangs or differs is named
and the others end.

Every host posts a beat once a second to jax's coordination service, out of band: nothing here is a
collective, and nothing waits for a host that is missing. Host 0 judges (see ``diagnose``) and posts
its verdict; the others read it, print it and end. The service lives in host 0: when it does not
answer, host 0 is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import jax

from llm_jax.goodput import Goodput
from llm_jax.multihost.diagnosis import (
    EVERY,
    EXIT_FIX,
    EXIT_RETRY,
    SLOW_SECONDS,
    Diagnosis,
    Failure,
    Heartbeat,
    Seen,
    broken,
    differences,
    slow,
    stuck,
    waiting,
    who,
)
from llm_jax.multihost.jax_service import ServiceStore
from llm_jax.types import ConfigError, DataError

PERIOD = 1.0
_WARN_AGAIN = 60.0
# Phases in which the end of another host shows as an error of this one.
_TOGETHER = ("setup", "compile", "step", "evaluate", "checkpoint")


class Store(Protocol):
    """Keys and values that all hosts see; any method may raise RuntimeError when the service is
    gone.
    """

    def put(self, key: str, value: Any) -> None: ...

    def folder(self, key: str) -> dict[str, Any]: ...

    def drop(self, key: str) -> None: ...

    def refused(self) -> bool: ...


class Watchdog:
    """The watch of this host over all. ``end`` ends the process; a test gives its own."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        ledger: Goodput,
        silent: float,
        limit: float,
        end: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        """silent: seconds without a beat after which a host is gone. limit: seconds that a host may
        keep the others waiting.
        """
        self.index, self.count, self._store, self._ledger = index, count, store, ledger
        self._silent, self._limit, self._end = silent, limit, end
        now = time.monotonic()
        self._table = {i: Seen(None, now) for i in range(count)}
        self._answered, self._number, self._failed_at, self._warned = (
            now,
            0,
            now,
            dict[str, float](),
        )
        self._stages: set[str] = set()
        self._past: deque[tuple[float, dict[int, Seen]]] = deque()
        self._closed, self._leaving, self._text, self._lock = (
            threading.Event(),
            0,
            "",
            threading.Lock(),
        )
        self._threads = [
            threading.Thread(target=f, daemon=True) for f in (self._beat_on, self._mind_the_service)
        ]

    def start(self) -> None:
        """Starts the threads. The first beat goes before anything else of this host, so that it can
        be named.
        """
        self._store.put(f"beat/{self.index}", self._beat())
        # jax aborts at once when host 0 is gone. As a handler, C's sleep takes the signal's number,
        # 6, for seconds: time to say why.
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """This host is done: its silence means nothing from now on."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._store.put(f"beat/{self.index}", self._beat(ended=True))

    # Facts ----------------------------------------------------------------------------------------

    def barrier_check(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Returns when every host has given the same facts. Where they differ the process ends, and
        who differs is printed.
        """
        self.compare(stage, fingerprint)
        since = time.monotonic()
        while not self._store.folder(f"agreed {stage}"):
            time.sleep(0.1)
            waited = time.monotonic() - since
            if self.index == 0 and waited > SLOW_SECONDS:
                given = self._store.folder(f"facts {stage}")
                missing = ", ".join(
                    who(i, s) for i, s in self._table.items() if str(i) not in given
                )
                self._warn(
                    f"waiting for {missing}, which after {waited:.0f} s has not come to the check"
                    f" of the {stage}"
                )
                self._pronounce(
                    Diagnosis(f"{missing} is stuck before the check of the {stage}", EXIT_RETRY)
                    if waited > self._limit
                    else None
                )

    def compare(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Like ``barrier_check`` but waits for nobody: the comparison is made when all facts are
        there.
        """
        self._store.put(f"facts {stage}/{self.index}", dict(fingerprint))
        if self.index == 0:
            self._stages.add(stage)

    def _compare(self) -> None:
        for stage in tuple(self._stages):
            fingerprints = {int(i): f for i, f in self._store.folder(f"facts {stage}").items()}
            if len(fingerprints) == self.count:
                self._pronounce(differences(fingerprints, self._table))
                self._store.put(f"agreed {stage}/all", True)
                self._store.drop(f"facts {stage}")
                self._stages.discard(stage)

    # Beats ----------------------------------------------------------------------------------------

    def _beat(self, ended: bool = False) -> Heartbeat:
        ledger, self._number = self._ledger, self._number + 1
        own = ledger.seconds["data"] + ledger.seconds["log"]
        phase, moves, idle = ledger.current, ledger.moves, ledger.idle()
        return Heartbeat(
            self._number,
            socket.gethostname(),
            os.getpid(),
            phase,
            ledger.step,
            moves,
            idle,
            own,
            ended,
        )

    def _beat_on(self) -> None:
        while not self._closed.wait(PERIOD):
            try:
                self._once()
                self._answered = time.monotonic()
            except RuntimeError as error:  # jax.errors.JaxRuntimeError, of a service that is gone
                if self._closed.wait(PERIOD):
                    return
                self._service_gone(" ".join(str(error).split())[:120])

    def _once(self) -> None:
        self._store.put(f"beat/{self.index}", self._beat())
        if self.index == 0:
            self._judge()
        verdict = self._store.folder("verdict")
        if verdict:
            self._store.put(f"read/{self.index}", True)
            self._obey(Diagnosis(*verdict["all"]))
        elif self._table[0].beat is None or self.index == 0:
            self._look()

    def _look(self) -> None:
        """Reads every host's beat; a new number is a sign of life."""
        now = time.monotonic()
        for key, words in self._store.folder("beat").items():
            beat, seen = Heartbeat(*words), self._table[int(key)]
            if seen.beat is None or beat.number != seen.beat.number:
                self._table[int(key)] = Seen(beat, now)

    def _judge(self) -> None:
        self._look()
        now = time.monotonic()
        failures = {int(i): Failure(*f) for i, f in self._store.folder("failed").items()}
        self._failed_at = min(self._failed_at, now) if failures else now
        verdict = broken(self._table, failures, now, self._silent, now - self._failed_at)
        self._pronounce(verdict or stuck(self._table, self._limit))
        self._compare()
        while self._past and now - self._past[0][0] > 2 * SLOW_SECONDS:
            self._past.popleft()
        old = next((table for at, table in reversed(self._past) if now - at >= SLOW_SECONDS), {})
        self._past.append((now, dict(self._table)))
        if warning := waiting(self._table) or slow(old, self._table):
            self._warn(warning)

    def _warn(self, text: str) -> None:
        """Prints a warning, and others of its kind (the same first words) only after a while."""
        now, kind = time.monotonic(), text[:30]
        if now - self._warned.get(kind, -_WARN_AGAIN) >= _WARN_AGAIN:
            self._warned[kind] = now
            print(f"WARNING: {text}", file=sys.stderr, flush=True)

    def _pronounce(self, verdict: Diagnosis | None) -> None:
        """Host 0 posts the verdict, waits until the others have read it, for the service ends with
        it, and obeys.
        """
        if verdict is None:
            return
        self._store.put("verdict/all", verdict)
        deadline = time.monotonic() + 3 * PERIOD
        alive = {
            i
            for i, s in self._table.items()
            if i and time.monotonic() - s.at < 3 * PERIOD and not (s.beat and s.beat.ended)
        }
        while time.monotonic() < deadline and not alive <= {
            int(i) for i in self._store.folder("read")
        }:
            time.sleep(0.1)
        self._obey(verdict)

    # Ends -----------------------------------------------------------------------------------------

    def leave(self, error: BaseException, text: str, status: int) -> NoReturn:
        """Ends this host after an error: tells the others why, and says who was the cause where it
        was another's end.

        text: what a person is told of the error. status: the exit status, where this host is the
        cause.
        """
        echo = self._ledger.current in _TOGETHER and not isinstance(
            error, ConfigError | DataError | KeyboardInterrupt
        )
        if not echo:
            print(text, file=sys.stderr, flush=True)
            self._leaving = status
        self._text = text
        with contextlib.suppress(
            RuntimeError
        ):  # without the service there is nobody to tell, and the watch says so
            self._store.put(
                f"failed/{self.index}", Failure(" ".join(text.split())[-400:], echo, status)
            )
        # The verdict comes to the thread, which ends the process.
        time.sleep(self._silent + 15 * PERIOD)
        if echo:
            print(text, file=sys.stderr, flush=True)
        self._finish(status)

    def _obey(self, verdict: Diagnosis) -> None:
        with self._lock:
            if self._leaving:
                self._finish(self._leaving)
            if verdict.text == EVERY:
                print(self._text, file=sys.stderr, flush=True)
            again = (
                "mend it and start again"
                if verdict.status == EXIT_FIX
                else "start every host again to go on from the newest checkpoint"
            )
            print(
                f"host {self.index} of {self.count} ends: {verdict.text}; {again}",
                file=sys.stderr,
                flush=True,
            )
            self._finish(verdict.status)

    def _finish(self, status: int) -> NoReturn:
        # The main thread may be inside a collective, which nothing interrupts.
        sys.stdout.flush()
        sys.stderr.flush()
        self._end(status)

    def _mind_the_service(self) -> None:
        while not self._closed.wait(PERIOD / 2):
            waited = time.monotonic() - self._answered
            if waited > self._silent + 3 * PERIOD or (
                waited > 2 * PERIOD and self._store.refused()
            ):
                self._service_gone(f"no answer for {waited:.0f} s")

    def _service_gone(self, reason: str) -> None:
        text = (
            f"{who(0, self._table[0])} is gone: the coordination service in it does not answer"
            f" ({reason})"
        )
        self._obey(Diagnosis(text, EXIT_RETRY))


def watch(ledger: Goodput, silent: float, limit: float) -> Watchdog:
    """The watch of this process over a run of several, started."""
    started = Watchdog(
        ServiceStore(), jax.process_index(), jax.process_count(), ledger, silent, limit
    )
    started.start()
    return started
