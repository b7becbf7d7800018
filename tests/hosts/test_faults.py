"""Four hosts and one fault: the right host and the cause are named within 30 seconds, and all end
with the stated exit status.
"""

from __future__ import annotations

import signal
import time

import pytest
from gang import Gang, ended, make_gang, tiny, until, wait
from jobs import checkpointed, make_shards, write_config, write_text

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.process

HOSTS, STEPS = 4, 400
AGAIN, MEND = 75, 2
SECONDS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return folder, make_shards(folder / "data"), folder / "cache"


def gang_of(place, name: str, **more) -> Gang:
    folder, shards, cache = place
    return make_gang(folder / name, shards, cache, HOSTS, STEPS, **more)


def line_of(gang: Gang, index: int) -> str:
    """The one line that says why this host ended."""
    lines = [
        line
        for line in gang.said(index).splitlines()
        if line.startswith(f"host {index} of {HOSTS} ends: ")
    ]
    assert len(lines) == 1, gang.everything()
    return lines[0]


def all_name(gang: Gang, victim: int, pid: int, cause: str, survivors: list[int]) -> None:
    for index in survivors:
        assert f"host {victim} (" in line_of(gang, index) and f"pid {pid})" in line_of(gang, index)
        assert cause in line_of(gang, index), gang.everything()


def since(gang: Gang, victim: int) -> float:
    """Seconds since the victim's fault began."""
    return time.time() - float(gang.said(victim).split("FAULT ")[1].split()[0])


@pytest.mark.parametrize(
    ("fault", "victim", "cause"),
    [
        (
            "broken 3",
            2,
            "ended: llm-jax train: error: shard 'tokens-train.array_record-00000' is damaged",
        ),
        pytest.param(
            "broken 3",
            0,
            "ended: llm-jax train: error: shard 'tokens-train.array_record-00000' is damaged",
            marks=pytest.mark.slow,
        ),
        ("ends 3", 1, "ended: llm-jax train: error: the data ended after 3 of 400 steps"),
    ],
)
def test_a_reader_error_and_data_that_ends_are_named(place, fault, victim, cause):
    gang = gang_of(place, f"{fault}{victim}".replace(" ", ""))
    with ended(gang.start({victim: fault})) as started:
        assert wait(started) == [MEND] * HOSTS, gang.everything()
        assert since(gang, victim) < SECONDS
    others = [i for i in range(HOSTS) if i != victim]
    all_name(gang, victim, started[victim].pid, cause, others)
    assert cause.removeprefix("ended: ") in gang.said(victim)


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_host_is_named(place, victim):
    gang = gang_of(place, f"killed{victim}")
    with ended(gang.start()) as started:
        until(lambda: gang.job.steps() >= 3, started, gang)
        started[victim].send_signal(signal.SIGKILL)
        before = time.monotonic()
        statuses = wait(started)
        assert time.monotonic() - before < SECONDS
        assert statuses == [AGAIN if i != victim else -signal.SIGKILL for i in range(HOSTS)], (
            gang.everything()
        )
    all_name(gang, victim, started[victim].pid, "is gone", [i for i in range(HOSTS) if i != victim])


def test_a_stuck_host_is_named_first_and_ended_later(place):
    gang = gang_of(place, "stuck", **{"train.host_stuck": 14.0})
    with ended(gang.start({1: "stuck 4"})) as started:
        until(lambda: "WARNING" in gang.said(0), started, gang)
        assert since(gang, 1) < SECONDS
        assert wait(started) == [AGAIN] * HOSTS, gang.everything()
    all_name(gang, 1, started[1].pid, "is stuck", [0, 1, 2, 3])
    assert (
        f"WARNING: host 1 ({line_of(gang, 0).split('host 1 (')[1].split(')')[0]}) holds the"
        " others up" in gang.said(0)
    )


def test_a_slow_host_is_named_and_the_run_goes_on(place):
    gang = gang_of(place, "slow")
    with ended(gang.start({2: "slow 1.5"})) as started:
        until(lambda: "WARNING" in gang.said(0), started, gang)
        assert since(gang, 2) < SECONDS
        step = gang.job.steps()
        until(lambda: gang.job.steps() > step, started, gang)
        started[1].send_signal(signal.SIGTERM)
        assert wait(started) == [128 + signal.SIGTERM] * HOSTS
    warnings = [line for line in gang.said(0).splitlines() if "WARNING" in line]
    assert (
        len(warnings) == 1
        and warnings[0].startswith("WARNING: host 2 (")
        and "is slow" in warnings[0]
    )
    assert f"pid {started[2].pid})" in warnings[0]
    assert checkpointed(gang.job) > step


def test_what_differs_is_named_with_the_host(place):
    folder, shards, _ = place
    gang = gang_of(place, "different")
    train_tokenizer(
        (str(folder / "data" / "two.jsonl"),), folder / "other_tokenizer", vocab_size=300
    )
    other_text = write_text(folder / "other.jsonl", 150, seed=9)
    for name, tokenizer in (
        ("other_data", folder / "data" / "tokenizer"),
        ("other_both", folder / "other_tokenizer"),
    ):
        prepare(
            (str(other_text),),
            tokenizer,
            folder / name,
            block_size=256,
            workers=1,
            validation_fraction=0.2,
        )
    changes = {
        "different config optimizer.learning_rate: host 2": {"optimizer.learning_rate": 0.5},
        "different data 0: host 2": {"data.path": (str(folder / "other_data"), str(shards[1]))},
        "different tokenizer: host 2": {"data.path": (str(folder / "other_both"), str(shards[1]))},
    }
    for number, (cause, change) in enumerate(changes.items()):
        config = write_config(
            folder / f"other{number}.py", tiny(shards, gang.job.out, STEPS) | change
        )
        for index in range(HOSTS):
            gang.log(index).unlink(missing_ok=True)
        with ended(gang.start({2: "differs"}, {2: config})) as started:
            assert wait(started) == [MEND] * HOSTS, gang.everything()
            assert since(gang, 2) < SECONDS
        all_name(gang, 2, started[2].pid, cause, [0, 1, 2, 3])
        assert "; hosts 0, 1, 3 have" in line_of(gang, 0)
    assert not (gang.job.out / "metrics.jsonl").exists()
