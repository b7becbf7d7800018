"""Which host is gone, which one delays the others, which one differs: pure functions of heartbeats,
failures and fingerprints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llm_jax.multihost.signals import SIGNALS

EXIT_RETRY = 75
"""Exit status (EX_TEMPFAIL of sysexits.h): if every host is started again, the run resumes from its
newest checkpoint.
"""
EXIT_FIX = 2
"""Exit status: the run fails again until something is fixed."""
EVERY = "every host failed"
SLOW_SECONDS = 10.0
"""A host is reported when it has delayed the others for so long; also the time over which its own
work is measured.
"""
_BROKEN_SILENCE = 5.0
_STARTING = ("setup", "compile")


class Heartbeat(NamedTuple):
    """The state of a host, which it publishes once a second.

    Attributes:
        number: of this heartbeat.
        name: of the host.
        pid: of its process.
        phase: category of ``Goodput`` that it is in.
        step: number of optimizer steps that it has started.
        moves: number of times that it changed phase; equal at the same place of the program on
            every host.
        idle: seconds since it last changed phase.
        own: seconds so far in phases in which it waits for no other host (data and log).
        ended: whether it has finished.
    """

    number: int
    name: str
    pid: int
    phase: str
    step: int
    moves: int
    idle: float
    own: float
    ended: bool


class Seen(NamedTuple):
    """The last heartbeat of a host.

    Attributes:
        beat: None before the first.
        at: when it came, in seconds of this host's monotonic clock.
    """

    beat: Heartbeat | None
    at: float


class Failure(NamedTuple):
    """What a host publishes before it ends with an error.

    Attributes:
        text: of the error.
        echo: whether the error may be a consequence of another host's end.
        status: exit status of the host.
    """

    text: str
    echo: bool
    status: int


class Diagnosis(NamedTuple):
    """Why the run ends, and the exit status of its hosts."""

    text: str
    status: int


def who(index: int, seen: Seen) -> str:
    """A host for people: ``host 2 (name, pid 17)``."""
    if seen.beat is None:
        return f"host {index}"
    return f"host {index} ({seen.beat.name}, pid {seen.beat.pid})"


def _doing(beat: Heartbeat | None) -> str:
    return f"in {beat.phase} at step {beat.step}" if beat else "starting"


def broken(
    table: Mapping[int, Seen],
    failures: Mapping[int, Failure],
    now: float,
    silent: float,
    failed_for: float,
) -> Diagnosis | None:
    """Whether the run has to end because a host failed or is gone.

    Args:
        table: last heartbeat of every host.
        failures: published failures by host.
        now: seconds of the clock of ``table``.
        silent: seconds without a heartbeat after which a host is gone; fewer are enough once
            another host has failed.
        failed_for: seconds since the first failure.

    Returns:
        The cause; None while there is none.
    """
    causes = {index: failure for index, failure in failures.items() if not failure.echo}
    if causes:
        return Diagnosis(_ended(table, causes), _status_of(causes.values()))
    gone = _gone(table, failures, now, min(silent, _BROKEN_SILENCE) if failures else silent)
    if gone:
        return Diagnosis(gone, EXIT_RETRY)
    if len(failures) == len(table):
        must_fix = all(failure.status == EXIT_FIX for failure in failures.values())
        return Diagnosis(EVERY, EXIT_FIX if must_fix else EXIT_RETRY)
    if failures and failed_for > 2 * _BROKEN_SILENCE:
        return Diagnosis(_ended(table, failures), EXIT_RETRY)
    return None


def _ended(table: Mapping[int, Seen], failures: Mapping[int, Failure]) -> str:
    return "; ".join(
        f"{who(index, table[index])} ended: {failure.text}"
        for index, failure in sorted(failures.items())
    )


def _status_of(failures: Iterable[Failure]) -> int:
    statuses = {failure.status for failure in failures}
    if EXIT_FIX in statuses:
        return EXIT_FIX
    # Hosts that were stopped by a signal while they started: all stop, and there is no error.
    if statuses <= {128 + signum for signum in SIGNALS}:
        return max(statuses)
    return EXIT_RETRY


def _gone(
    table: Mapping[int, Seen], failures: Mapping[int, Failure], now: float, limit: float
) -> str:
    """The hosts without a heartbeat for ``limit`` seconds; empty if there are none."""
    lines = []
    for index, seen in sorted(table.items()):
        has_ended = seen.beat is not None and seen.beat.ended
        silence = now - seen.at
        if silence > limit and not has_ended and index not in failures:
            lines.append(
                f"{who(index, seen)} is gone: no sign of life for {silence:.0f} s, last"
                f" {_doing(seen.beat)}"
            )
    return "; ".join(lines)


def behind(table: Mapping[int, Seen]) -> dict[int, Seen]:
    """The hosts that the others wait for: those with the fewest moves, if some have more.

    A host that compiles delays nobody.
    """
    beats = {index: seen.beat for index, seen in table.items() if seen.beat is not None}
    if len(beats) < len(table) or any(beat.ended for beat in beats.values()):
        return {}
    least = min(beat.moves for beat in beats.values())
    last = {index: beat for index, beat in beats.items() if beat.moves == least}
    compiling = any(beat.phase in _STARTING for beat in last.values())
    if compiling or len(last) == len(beats):
        return {}
    return {index: table[index] for index in last}


def stuck(table: Mapping[int, Seen], limit: float) -> Diagnosis | None:
    """The hosts for which the others have waited ``limit`` seconds; None if there are none."""
    lines = [
        f"{who(index, seen)} is stuck: {seen.beat.idle:.0f} s {_doing(seen.beat)}, the others wait"
        for index, seen in sorted(behind(table).items())
        if seen.beat is not None and seen.beat.idle > limit
    ]
    return Diagnosis("; ".join(lines), EXIT_RETRY) if lines else None


def waiting(table: Mapping[int, Seen]) -> str:
    """A warning about hosts for which the others have waited SLOW_SECONDS; empty without any."""
    held = stuck(table, SLOW_SECONDS)
    return held.text.replace(" is stuck:", " holds the others up:") if held else ""


def slow(before: Mapping[int, Seen], now: Mapping[int, Seen]) -> str:
    """A warning about hosts that spend most of their time in data and log, unlike the others.

    Args:
        before: an earlier table.
        now: the table.

    Returns:
        The warning; empty if there is no such host, or while a host starts or compiles.
    """
    shares: dict[int, float] = {}
    for index, seen in now.items():
        share = _own_share(before.get(index), seen)
        if share is None:
            return ""
        shares[index] = share
    lines = []
    for index, share in sorted(shares.items()):
        others = sorted(other for host, other in shares.items() if host != index)
        usual = others[len(others) // 2]
        if share > 0.5 and usual < 0.25:
            lines.append(
                f"{who(index, now[index])} is slow: {share:.0%} of its time goes to data and log,"
                f" {usual:.0%} of the others'"
            )
    return "; ".join(lines)


def _own_share(before: Seen | None, now: Seen) -> float | None:
    """Share of the time between two heartbeats that a host spent in data and log."""
    if before is None or before.beat is None or now.beat is None or now.at <= before.at:
        return None
    if now.beat.phase in _STARTING:
        return None
    return (now.beat.own - before.beat.own) / (now.at - before.at)


def differences(
    fingerprints: Mapping[int, Mapping[str, Any]], table: Mapping[int, Seen]
) -> Diagnosis | None:
    """Where the fingerprints of hosts differ, and which hosts differ from the majority.

    Only the first differing group of keys (by their first word) is reported, because a difference
    causes others: another config has another program.

    Args:
        fingerprints: values by key, of every host.
        table: last heartbeat of every host.

    Returns:
        The differences; None if there are none. Without a majority, the values of all hosts.
    """
    keys = list(dict.fromkeys(key for values in fingerprints.values() for key in values))
    for group in dict.fromkeys(_group(key) for key in keys):
        found = (_difference(key, fingerprints, table) for key in keys if _group(key) == group)
        lines = [line for line in found if line]
        if lines:
            return Diagnosis("; ".join(lines), EXIT_FIX)
    return None


def _group(key: str) -> str:
    return key.split(" ")[0]


def _difference(
    key: str, fingerprints: Mapping[int, Mapping[str, Any]], table: Mapping[int, Seen]
) -> str:
    """Which host has which value of a key; empty if all have the same."""
    values = {index: str(one.get(key, "absent")) for index, one in sorted(fingerprints.items())}
    usual, times = Counter(values.values()).most_common(1)[0]
    if times == len(values):
        return ""
    has_majority = 2 * times > len(values)
    odd = ", ".join(
        f"{who(index, table[index])} has {value}"
        for index, value in values.items()
        if not has_majority or value != usual
    )
    if not has_majority:
        return f"different {key}: {odd}"
    rest = ", ".join(str(index) for index, value in values.items() if value == usual)
    subject = f"hosts {rest} have" if times > 1 else f"host {rest} has"
    return f"different {key}: {odd}; {subject} {usual}"
