"""Judging by hand: who is gone, who is behind, who is slow, who differs."""

from __future__ import annotations

from llm_jax.multihost.diagnosis import (
    EVERY,
    EXIT_FIX,
    EXIT_RETRY,
    Failure,
    Heartbeat,
    Seen,
    behind,
    broken,
    differences,
    slow,
    stuck,
    waiting,
)

NONE: dict[int, Failure] = {}


def seen(
    at: float = 100.0,
    moves: int = 20,
    idle: float = 0.0,
    phase: str = "step",
    own: float = 0.0,
    ended: bool = False,
) -> Seen:
    return Seen(Heartbeat(1, "node", 7, phase, 5, moves, idle, own, ended), at)


def test_all_is_well():
    table = {i: seen() for i in range(4)}
    assert (
        broken(table, NONE, 101.0, 15.0, 0.0) is None
        and stuck(table, 10.0) is None
        and waiting(table) == ""
    )


def test_silence_is_death_sooner_where_collectives_failed_and_not_after_the_end():
    table = {0: seen(), 1: seen(at=90.0), 2: seen()}
    assert broken(table, NONE, 100.0, 15.0, 0.0) is None
    assert (
        broken(table, NONE, 106.0, 15.0, 0.0).text
        == "host 1 (node, pid 7) is gone: no sign of life for 16 s, last in step at step 5"
    )
    echo = {0: Failure("Gloo failed", True, 1)}
    verdict = broken(table, echo, 100.0, 15.0, 1.0)
    assert verdict.status == EXIT_RETRY and verdict.text.startswith("host 1 (node, pid 7) is gone")
    assert broken({**table, 1: seen(at=0.0, ended=True)}, NONE, 100.0, 15.0, 0.0) is None
    never = broken({**table, 1: Seen(None, 80.0)}, NONE, 100.0, 15.0, 0.0)
    assert never.text == "host 1 is gone: no sign of life for 20 s, last starting"


def test_a_cause_goes_before_its_echoes():
    table = {i: seen() for i in range(3)}
    failures = {0: Failure("Gloo failed", True, 1), 2: Failure("shard damaged", False, EXIT_FIX)}
    assert broken(table, failures, 101.0, 15.0, 1.0) == (
        "host 2 (node, pid 7) ended: shard damaged",
        EXIT_FIX,
    )
    only_echo = {0: failures[0]}
    assert broken(table, only_echo, 101.0, 15.0, 1.0) is None
    assert (
        broken(table, only_echo, 101.0, 15.0, 11.0).text
        == "host 0 (node, pid 7) ended: Gloo failed"
    )
    assert broken(
        table, dict.fromkeys(range(3), Failure("does not fit", True, EXIT_FIX)), 101.0, 15.0, 0.0
    ) == (EVERY, EXIT_FIX)


def test_hosts_that_were_stopped_while_they_started_stop_all():
    table = {i: seen(phase="compile") for i in range(3)}
    stopped = {1: Failure("stopped by SIGTERM", False, 143)}
    assert broken(table, stopped, 101.0, 15.0, 0.0) == (
        "host 1 (node, pid 7) ended: stopped by SIGTERM",
        143,
    )
    assert (
        broken(table, {**stopped, 2: Failure("a bug", False, 1)}, 101.0, 15.0, 0.0).status
        == EXIT_RETRY
    )
    assert (
        broken(table, {**stopped, 2: Failure("bad", False, EXIT_FIX)}, 101.0, 15.0, 0.0).status
        == EXIT_FIX
    )


def test_the_host_with_the_fewest_moves_holds_the_others_up():
    table = {
        0: seen(moves=23, idle=12.0),
        1: seen(moves=20, idle=12.5, phase="data"),
        2: seen(moves=23, idle=12.0),
    }
    assert list(behind(table)) == [1]
    assert (
        waiting(table)
        == "host 1 (node, pid 7) holds the others up: 12 s in data at step 5, the others wait"
    )
    assert stuck(table, 300.0) is None and stuck(table, 12.0).status == EXIT_RETRY
    together = {i: seen(moves=23, idle=500.0) for i in range(3)}
    assert behind(together) == {} and stuck(together, 300.0) is None
    assert behind({**table, 1: seen(moves=20, idle=400.0, phase="compile")}) == {}
    assert behind({**table, 2: Seen(None, 100.0)}) == {}
    # The first batch: what the others do meanwhile may be compiling, or waiting for this one.
    assert list(
        behind(
            {
                0: seen(moves=2, phase="compile"),
                1: seen(moves=1, phase="data"),
                2: seen(moves=2, phase="compile"),
            }
        )
    ) == [1]


def test_slow_is_the_one_whose_time_goes_to_its_own_work():
    before = {i: seen(at=100.0) for i in range(4)}
    after = {i: seen(at=110.0, own=8.0 if i == 2 else 0.5) for i in range(4)}
    assert (
        slow(before, after)
        == "host 2 (node, pid 7) is slow: 80% of its time goes to data and log, 5% of the others'"
    )
    assert slow(before, {i: seen(at=110.0, own=8.0) for i in range(4)}) == ""
    assert slow({}, after) == ""


def test_the_majority_decides_who_differs():
    table = {i: seen() for i in range(4)}
    fingerprint = {
        i: {
            "code": "a",
            "config train.steps": "9" if i == 3 else "8",
            "program": "x" if i == 3 else "y",
        }
        for i in range(4)
    }
    verdict = differences(fingerprint, table)
    assert verdict == (
        "different config train.steps: host 3 (node, pid 7) has 9; hosts 0, 1, 2 have 8",
        EXIT_FIX,
    )
    assert differences(dict.fromkeys(range(4), fingerprint[0]), table) is None
    two = {0: fingerprint[0], 1: fingerprint[3]}
    assert (
        differences(two, table).text
        == "different config train.steps: host 0 (node, pid 7) has 8, host 1 (node, pid 7) has 9"
    )
    absent = {**fingerprint, 3: {"code": "a", "program": "y"}}
    assert "host 3 (node, pid 7) has absent" in differences(absent, table).text
