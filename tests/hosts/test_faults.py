"""Three hosts and one fault: the right host and the cause are named within 30 seconds, and all end
with the stated exit status.
"""

from __future__ import annotations

import signal
import time

import pytest
from jobs import checkpointed, make_shards, write_config, write_text
from multihost import HostGroup, ended, make_group, tiny, until, wait

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.process

HOSTS, STEPS = 3, 400
EVERYBODY = list(range(HOSTS))
EXIT_RETRY, EXIT_FIX = 75, 2
SECONDS = 30
ROWS = {"data.batch_size": 12}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return folder, make_shards(folder / "data"), folder / "cache"


def group_of(place, name: str, **more) -> HostGroup:
    folder, shards, cache = place
    return make_group(folder / name, shards, cache, HOSTS, STEPS, **ROWS, **more)


def line_of(group: HostGroup, index: int) -> str:
    """The one line that says why this host ended."""
    lines = [
        line
        for line in group.said(index).splitlines()
        if line.startswith(f"host {index} of {HOSTS} ends: ")
    ]
    assert len(lines) == 1, group.everything()
    return lines[0]


def all_name(group: HostGroup, victim: int, pid: int, cause: str, survivors: list[int]) -> None:
    for index in survivors:
        assert f"host {victim} (" in line_of(group, index) and f"pid {pid})" in line_of(
            group, index
        )
        assert cause in line_of(group, index), group.everything()


def since(group: HostGroup, victim: int) -> float:
    """Seconds since the victim's fault began."""
    return time.time() - float(group.said(victim).split("FAULT ")[1].split()[0])


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
    group = group_of(place, f"{fault}{victim}".replace(" ", ""))
    with ended(group.start({victim: fault})) as started:
        assert wait(started) == [EXIT_FIX] * HOSTS, group.everything()
        assert since(group, victim) < SECONDS
    others = [i for i in EVERYBODY if i != victim]
    all_name(group, victim, started[victim].pid, cause, others)
    assert cause.removeprefix("ended: ") in group.said(victim)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_host_is_named(place, victim):
    group = group_of(place, f"killed{victim}")
    with ended(group.start()) as started:
        until(lambda: group.job.steps() >= 3, started, group)
        started[victim].send_signal(signal.SIGKILL)
        before = time.monotonic()
        statuses = wait(started)
        assert time.monotonic() - before < SECONDS
        assert statuses == [EXIT_RETRY if i != victim else -signal.SIGKILL for i in EVERYBODY], (
            group.everything()
        )
    all_name(group, victim, started[victim].pid, "is gone", [i for i in EVERYBODY if i != victim])


def test_a_stuck_host_is_named_first_and_ended_later(place):
    group = group_of(place, "stuck", **{"train.hosts.stuck": 14.0})
    with ended(group.start({1: "stuck 4"})) as started:
        until(lambda: "WARNING" in group.said(0), started, group)
        assert since(group, 1) < SECONDS
        assert wait(started) == [EXIT_RETRY] * HOSTS, group.everything()
    all_name(group, 1, started[1].pid, "is stuck", EVERYBODY)
    assert (
        f"WARNING: host 1 ({line_of(group, 0).split('host 1 (')[1].split(')')[0]}) holds the"
        " others up" in group.said(0)
    )


def test_a_slow_host_is_named_and_the_run_goes_on(place):
    group = group_of(place, "slow")
    with ended(group.start({2: "slow 1.5"})) as started:
        until(lambda: "WARNING" in group.said(0), started, group)
        assert since(group, 2) < SECONDS
        step = group.job.steps()
        until(lambda: group.job.steps() > step, started, group)
        started[1].send_signal(signal.SIGTERM)
        assert wait(started) == [128 + signal.SIGTERM] * HOSTS
    warnings = [line for line in group.said(0).splitlines() if "WARNING" in line]
    assert (
        len(warnings) == 1
        and warnings[0].startswith("WARNING: host 2 (")
        and "is slow" in warnings[0]
    )
    assert f"pid {started[2].pid})" in warnings[0]
    assert checkpointed(group.job) > step


def test_what_differs_is_named_with_the_host(place):
    folder, shards, _ = place
    group = group_of(place, "different")
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
            folder / f"other{number}.py", tiny(shards, group.job.out, STEPS) | ROWS | change
        )
        for index in EVERYBODY:
            group.log(index).unlink(missing_ok=True)
        with ended(group.start({2: "differs"}, {2: config})) as started:
            assert wait(started) == [EXIT_FIX] * HOSTS, group.everything()
            assert since(group, 2) < SECONDS
        all_name(group, 2, started[2].pid, cause, EVERYBODY)
        assert "; hosts 0, 1 have" in line_of(group, 0)
    assert not (group.job.out / "metrics.jsonl").exists()
