"""Watching the other hosts of a run from a thread, so that one that died, hangs or differs is named
and the others end.

Every host publishes a heartbeat once a second in jax's coordination service. No collective is
involved, so nothing waits for a missing host. Host 0 diagnoses the heartbeats and publishes its
diagnosis; the others read it, print it and end. The service runs in host 0: when it does not
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
# In these phases, the end of another host appears as an error of this one.
_COLLECTIVE_PHASES = ("setup", "compile", "step", "evaluate", "checkpoint")


class Store(Protocol):
    """Keys and values that all hosts see; see ``jax_service.ServiceStore``."""

    def put(self, key: str, value: Any) -> None:
        """Set a key."""

    def folder(self, key: str) -> dict[str, Any]:
        """The values of the keys below ``key``/, by the last part of the key."""

    def drop(self, key: str) -> None:
        """Delete all keys below ``key``/."""

    def refused(self) -> bool:
        """Whether nothing listens at the coordinator's address any more."""


class Watchdog:
    """This host's watch over the others.

    Args:
        store: shared by all hosts.
        index: of this host.
        count: number of hosts.
        goodput: phase and progress of this host.
        silent: seconds without a heartbeat after which a host is gone.
        limit: seconds that a host may delay the others.
        end: ends this process with an exit status.
    """

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        goodput: Goodput,
        *,
        silent: float,
        limit: float,
        end: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self.index = index
        self.count = count
        self._store = store
        self._goodput = goodput
        self._silent = silent
        self._limit = limit
        self._end = end
        now = time.monotonic()
        self._table = {host: Seen(None, now) for host in range(count)}
        self._beats = 0
        self._answered = now
        self._failed_at = now
        self._warned: dict[str, float] = {}
        self._stages: set[str] = set()
        self._past: deque[tuple[float, dict[int, Seen]]] = deque()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._own_status = 0
        self._own_error = ""
        self._threads = [
            threading.Thread(target=run, daemon=True)
            for run in (self._send_heartbeats, self._watch_service)
        ]

    def start(self) -> None:
        """Start the threads, after the first heartbeat, by which this host can be named."""
        self._store.put(f"beat/{self.index}", self._heartbeat())
        _delay_aborts()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads and publish that this host has finished."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._store.put(f"beat/{self.index}", self._heartbeat(ended=True))

    # Fingerprints -------------------------------------------------------------------------------

    def barrier_check(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Wait until every host has given the same fingerprint.

        If they differ, the process ends and the differing hosts are printed.

        Args:
            stage: name of the check.
            fingerprint: values by key that must be equal on all hosts.
        """
        self.compare(stage, fingerprint)
        since = time.monotonic()
        while not self._store.folder(f"agreed {stage}"):
            time.sleep(0.1)
            waited = time.monotonic() - since
            if self.index == 0 and waited > SLOW_SECONDS:
                self._report_missing(stage, waited)

    def compare(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Like ``barrier_check``, without waiting: host 0 compares once all have given theirs."""
        self._store.put(f"facts {stage}/{self.index}", dict(fingerprint))
        if self.index == 0:
            self._stages.add(stage)

    def _report_missing(self, stage: str, waited: float) -> None:
        given = self._store.folder(f"facts {stage}")
        missing = ", ".join(
            who(host, seen) for host, seen in self._table.items() if str(host) not in given
        )
        self._warn(
            f"waiting for {missing}, which after {waited:.0f} s has not come to the check"
            f" of the {stage}"
        )
        if waited > self._limit:
            text = f"{missing} is stuck before the check of the {stage}"
            self._publish(Diagnosis(text, EXIT_RETRY))

    def _compare(self) -> None:
        for stage in tuple(self._stages):
            given = self._store.folder(f"facts {stage}")
            if len(given) == self.count:
                fingerprints = {int(host): values for host, values in given.items()}
                found = differences(fingerprints, self._table)
                if found is not None:
                    self._publish(found)
                self._store.put(f"agreed {stage}/all", True)
                self._store.drop(f"facts {stage}")
                self._stages.discard(stage)

    # Heartbeats ---------------------------------------------------------------------------------

    def _heartbeat(self, ended: bool = False) -> Heartbeat:
        self._beats += 1
        goodput = self._goodput
        return Heartbeat(
            number=self._beats,
            name=socket.gethostname(),
            pid=os.getpid(),
            phase=goodput.current,
            step=goodput.step,
            moves=goodput.moves,
            idle=goodput.idle(),
            own=goodput.seconds["data"] + goodput.seconds["log"],
            ended=ended,
        )

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(PERIOD):
            try:
                self._send_heartbeat()
                self._answered = time.monotonic()
            except RuntimeError as error:
                # A jax.errors.JaxRuntimeError: the service has ended.
                if self._closed.wait(PERIOD):
                    return
                self._end_without_service(" ".join(str(error).split())[:120])

    def _send_heartbeat(self) -> None:
        self._store.put(f"beat/{self.index}", self._heartbeat())
        if self.index == 0:
            self._diagnose()
        published = self._store.folder("verdict")
        if published:
            self._store.put(f"read/{self.index}", True)
            self._obey(Diagnosis(*published["all"]))
        elif self._table[0].beat is None or self.index == 0:
            self._read_heartbeats()

    def _read_heartbeats(self) -> None:
        """Update the table; a heartbeat with a new number is a sign of life."""
        now = time.monotonic()
        for host, fields in self._store.folder("beat").items():
            beat = Heartbeat(*fields)
            seen = self._table[int(host)]
            if seen.beat is None or beat.number != seen.beat.number:
                self._table[int(host)] = Seen(beat, now)

    def _diagnose(self) -> None:
        """On host 0: publish a diagnosis where the run has to end, or warn."""
        self._read_heartbeats()
        now = time.monotonic()
        published = self._store.folder("failed")
        failures = {int(host): Failure(*fields) for host, fields in published.items()}
        self._failed_at = min(self._failed_at, now) if failures else now
        found = broken(self._table, failures, now, self._silent, now - self._failed_at)
        found = found or stuck(self._table, self._limit)
        if found is not None:
            self._publish(found)
        self._compare()
        before = self._table_before(now)
        warning = waiting(self._table) or slow(before, self._table)
        if warning:
            self._warn(warning)

    def _table_before(self, now: float) -> dict[int, Seen]:
        """The table of SLOW_SECONDS ago, empty before; remembers the table of now."""
        while self._past and now - self._past[0][0] > 2 * SLOW_SECONDS:
            self._past.popleft()
        old = next((table for at, table in reversed(self._past) if now - at >= SLOW_SECONDS), {})
        self._past.append((now, dict(self._table)))
        return old

    def _warn(self, text: str) -> None:
        """Print a warning; one with the same first words is printed again after a while only."""
        kind = text[:30]
        now = time.monotonic()
        if now - self._warned.get(kind, -_WARN_AGAIN) >= _WARN_AGAIN:
            self._warned[kind] = now
            print(f"WARNING: {text}", file=sys.stderr, flush=True)

    def _publish(self, diagnosis: Diagnosis) -> None:
        """On host 0: publish the diagnosis, wait until the others have read it, and end.

        The service ends with host 0, so the others must have read it before.
        """
        self._store.put("verdict/all", diagnosis)
        now = time.monotonic()
        alive = {
            host
            for host, seen in self._table.items()
            if host and now - seen.at < 3 * PERIOD and not (seen.beat and seen.beat.ended)
        }
        deadline = now + 3 * PERIOD
        while time.monotonic() < deadline:
            if alive <= {int(host) for host in self._store.folder("read")}:
                break
            time.sleep(0.1)
        self._obey(diagnosis)

    # The end ------------------------------------------------------------------------------------

    def leave(self, error: BaseException, text: str, status: int) -> NoReturn:
        """End this host after an error.

        The error is published. Where it may be a consequence of another host's end, the diagnosis
        that names that host is printed instead of it.

        Args:
            error: the error.
            text: its message for people.
            status: exit status where this host is the cause.
        """
        own = isinstance(error, ConfigError | DataError | KeyboardInterrupt)
        echo = self._goodput.current in _COLLECTIVE_PHASES and not own
        if not echo:
            print(text, file=sys.stderr, flush=True)
            self._own_status = status
        self._own_error = text
        # Without the service there is nobody to tell, and its watch ends the process.
        with contextlib.suppress(RuntimeError):
            failure = Failure(" ".join(text.split())[-400:], echo, status)
            self._store.put(f"failed/{self.index}", failure)
        # The thread that reads the diagnosis ends the process.
        time.sleep(self._silent + 15 * PERIOD)
        if echo:
            print(text, file=sys.stderr, flush=True)
        self._finish(status)

    def _obey(self, diagnosis: Diagnosis) -> NoReturn:
        with self._lock:
            if self._own_status:
                self._finish(self._own_status)
            if diagnosis.text == EVERY:
                print(self._own_error, file=sys.stderr, flush=True)
            if diagnosis.status == EXIT_FIX:
                advice = "mend it and start again"
            else:
                advice = "start every host again to go on from the newest checkpoint"
            print(
                f"host {self.index} of {self.count} ends: {diagnosis.text}; {advice}",
                file=sys.stderr,
                flush=True,
            )
            self._finish(diagnosis.status)

    def _finish(self, status: int) -> NoReturn:
        # The main thread may be in a collective, which nothing interrupts.
        sys.stdout.flush()
        sys.stderr.flush()
        self._end(status)

    def _watch_service(self) -> None:
        while not self._closed.wait(PERIOD / 2):
            waited = time.monotonic() - self._answered
            is_silent = waited > self._silent + 3 * PERIOD
            if is_silent or (waited > 2 * PERIOD and self._store.refused()):
                self._end_without_service(f"no answer for {waited:.0f} s")

    def _end_without_service(self, reason: str) -> NoReturn:
        text = (
            f"{who(0, self._table[0])} is gone: the coordination service in it does not answer"
            f" ({reason})"
        )
        self._obey(Diagnosis(text, EXIT_RETRY))


def _delay_aborts() -> None:
    """Leave time to print why this host ends, although jax aborts at once when host 0 is gone.

    C's ``sleep`` as the handler of SIGABRT takes the signal's number, 6, for seconds.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def watch(goodput: Goodput, silent: float, limit: float) -> Watchdog:
    """The started watch of this process over the hosts of its run.

    Args:
        goodput: phase and progress of this host.
        silent: seconds without a heartbeat after which a host is gone.
        limit: seconds that a host may delay the others.
    """
    started = Watchdog(
        ServiceStore(),
        jax.process_index(),
        jax.process_count(),
        goodput,
        silent=silent,
        limit=limit,
    )
    started.start()
    return started
