"""Who is gone, who holds the others up, who differs: pure functions of what the hosts said about
themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_jax.multihost.signals import SIGNALS

EXIT_RETRY = 75
"""Exit status (EX_TEMPFAIL of sysexits.h): start every host again, and the run goes on from its
newest checkpoint.
"""
EXIT_FIX = 2
"""Exit status: something must be mended first."""
EVERY = "every host failed"
SLOW_SECONDS = 10.0
"""A host's own work is measured over so long, and one that keeps the others waiting for so long is
named.
"""
_BROKEN_SILENCE = 5.0


class Heartbeat(NamedTuple):
    """What a host says about itself once a second.

    number: of this beat. name, pid: of its process. phase: category of the ledger. step: optimizer
    steps it has started. moves: how
    often it changed phase: the same number at the same place of the program on every host. idle:
    seconds since. own: seconds so far
    for data and log, when no other host has anything to wait for. ended: it is done.
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
    """A host's last beat (None before the first) and when, by this host's clock, it came."""

    beat: Heartbeat | None
    at: float


class Failure(NamedTuple):
    """What a host says before it ends. echo: it may be the consequence of another host's end.
    status: its exit status.
    """

    text: str
    echo: bool
    status: int


class Diagnosis(NamedTuple):
    """Why the run ends, and the exit status of the hosts that are told so."""

    text: str
    status: int


def who(index: int, seen: Seen) -> str:
    """``host 2 (name, pid 17)``."""
    return f"host {index}" + (f" ({seen.beat.name}, pid {seen.beat.pid})" if seen.beat else "")


def _doing(beat: Heartbeat | None) -> str:
    return f"in {beat.phase} at step {beat.step}" if beat else "starting"


def broken(
    table: Mapping[int, Seen],
    failures: Mapping[int, Failure],
    now: float,
    silent: float,
    failed_for: float,
) -> Diagnosis | None:
    """A host that said what went wrong with it, or that says nothing any more; None while there is
    none.

    silent: seconds without a beat after which a host is gone; less when the others' collectives
    have failed already. failed_for: seconds since the first failure.
    """
    own = {i: f for i, f in failures.items() if not f.echo}
    if own:
        text = "; ".join(f"{who(i, table[i])} ended: {f.text}" for i, f in sorted(own.items()))
        statuses = {f.status for f in own.values()}
        # Told to stop while they started: all stop, and nothing is wrong.
        stopped = max(statuses) if statuses <= {128 + s for s in SIGNALS} else EXIT_RETRY
        return Diagnosis(text, EXIT_FIX if EXIT_FIX in statuses else stopped)
    limit = min(silent, _BROKEN_SILENCE) if failures else silent
    gone = {
        i: s
        for i, s in table.items()
        if now - s.at > limit and not (s.beat and s.beat.ended) and i not in failures
    }
    if gone:
        lines = [
            f"{who(i, s)} is gone: no sign of life for {now - s.at:.0f} s, last {_doing(s.beat)}"
            for i, s in sorted(gone.items())
        ]
        return Diagnosis("; ".join(lines), EXIT_RETRY)
    if len(failures) == len(table):
        return Diagnosis(
            EVERY, EXIT_FIX if all(f.status == EXIT_FIX for f in failures.values()) else EXIT_RETRY
        )
    if failures and failed_for > 2 * _BROKEN_SILENCE:
        return Diagnosis(
            "; ".join(f"{who(i, table[i])} ended: {f.text}" for i, f in sorted(failures.items())),
            EXIT_RETRY,
        )
    return None


def behind(table: Mapping[int, Seen]) -> dict[int, Seen]:
    """Hosts that the others wait for: they have made the fewest moves, and some have made more.
    Compiling is no delay.
    """
    beats = {i: s for i, s in table.items() if s.beat}
    if len(beats) < len(table) or any(s.beat.ended for s in beats.values()):
        return {}
    least = min(s.beat.moves for s in beats.values())
    last = {i: s for i, s in beats.items() if s.beat.moves == least}
    compiling = any(s.beat.phase in ("setup", "compile") for s in last.values())
    return last if len(last) < len(beats) and not compiling else {}


def stuck(table: Mapping[int, Seen], limit: float) -> Diagnosis | None:
    """A host that has kept the others waiting for ``limit`` seconds in one place."""
    held = {i: s for i, s in behind(table).items() if s.beat.idle > limit}
    if not held:
        return None
    lines = [
        f"{who(i, s)} is stuck: {s.beat.idle:.0f} s {_doing(s.beat)}, the others wait"
        for i, s in sorted(held.items())
    ]
    return Diagnosis("; ".join(lines), EXIT_RETRY)


def waiting(table: Mapping[int, Seen]) -> str:
    """A warning about a host that has kept the others waiting for SLOW_SECONDS; empty when there is
    none.
    """
    held = stuck(table, SLOW_SECONDS)
    return held.text.replace(" is stuck:", " holds the others up:") if held else ""


def slow(before: Mapping[int, Seen], now: Mapping[int, Seen]) -> str:
    """A warning about a host most of whose time went to its own work (data and log) while the
    others' did not; empty if none.
    """
    shares = {}
    for i, s in now.items():
        old = before.get(i)
        if (
            s.beat is None
            or old is None
            or old.beat is None
            or s.beat.phase in ("setup", "compile")
            or s.at <= old.at
        ):
            return ""
        shares[i] = (s.beat.own - old.beat.own) / (s.at - old.at)
    lines = []
    for i, share in sorted(shares.items()):
        others = sorted(v for j, v in shares.items() if j != i)
        usual = others[len(others) // 2]
        if share > 0.5 and usual < 0.25:
            lines.append(
                f"{who(i, now[i])} is slow: {share:.0%} of its time goes to data and log,"
                f" {usual:.0%} of the others'"
            )
    return "; ".join(lines)


def differences(
    fingerprints: Mapping[int, Mapping[str, Any]], table: Mapping[int, Seen]
) -> Diagnosis | None:
    """What the hosts do not have in common. With a majority, who departs from it; without one, who
    has what.

    Only the first group of facts that differs is told: another config has another program.
    """
    keys = list(dict.fromkeys(key for one in fingerprints.values() for key in one))
    lines: list[str] = []
    for group in dict.fromkeys(key.split(" ")[0] for key in keys):
        lines = [
            line
            for key in keys
            if key.split(" ")[0] == group and (line := _difference(key, fingerprints, table))
        ]
        if lines:
            break
    return Diagnosis("; ".join(lines), EXIT_FIX) if lines else None


def _difference(
    key: str, fingerprints: Mapping[int, Mapping[str, Any]], table: Mapping[int, Seen]
) -> str:
    values = {i: str(one.get(key, "absent")) for i, one in sorted(fingerprints.items())}
    counted = Counter(values.values()).most_common()
    if len(counted) == 1:
        return ""
    usual, times = counted[0]
    if 2 * times > len(values):
        odd = ", ".join(f"{who(i, table[i])} has {v}" for i, v in values.items() if v != usual)
        rest = ", ".join(str(i) for i, v in values.items() if v == usual)
        return (
            f"different {key}: {odd}; host{'s' if times > 1 else ''} {rest}"
            f" {'have' if times > 1 else 'has'} {usual}"
        )
    return f"different {key}: " + ", ".join(
        f"{who(i, table[i])} has {v}" for i, v in values.items()
    )
