"""Two hosts of which one is killed, and started again: the uninterrupted run bit for bit. And
starts that cannot work.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from jobs import checkpointed, environment, make_shards, result
from multihost import HOST, ended, free_port, make_group, until, wait

pytestmark = pytest.mark.process

STEPS = 9
MORE = {"train.checkpoint_every": 3, "train.eval_every": 3, "train.hosts.check_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restart")
    return folder, make_shards(folder / "data"), folder / "cache"


def test_a_killed_host_and_the_same_command_change_no_bit(place):
    folder, shards, cache = place
    whole, killed = (
        make_group(folder / name, shards, cache, 2, STEPS, **MORE) for name in ("whole", "killed")
    )
    whole.finish()
    with ended(killed.start({0: "slow 0.3"})) as started:
        until(lambda: killed.job.steps() >= 4 and checkpointed(killed.job) == 3, started, killed)
        started[1].send_signal(signal.SIGKILL)
        assert wait(started) == [75, -signal.SIGKILL], killed.everything()
    assert "host 0 of 2 ends: host 1 (" in killed.said(
        0
    ) and "start every host again" in killed.said(0)
    killed.finish()
    assert "going on from step" in killed.said(0)
    assert result(killed.job) == result(whole.job)
    # The step was compiled once, by the first of three starts.
    assert (
        len(
            [
                p
                for p in cache.iterdir()
                if p.name.startswith("jit_train_step-") and p.name.endswith("-cache")
            ]
        )
        == 1
    )
    assert killed.job.records("ledger")[-1]["start_to_first_step"] > 0


def test_a_stop_of_one_host_before_the_first_step_ends_all_and_says_so(place):
    """Host 1 waits for its first batch, host 0 for host 1."""
    folder, shards, cache = place
    group = make_group(folder / "early", shards, cache, 2, STEPS, **MORE)
    with ended(group.start({1: "stuck 0"})) as started:
        until(lambda: group.job.records("setup"), started, group)
        started[1].send_signal(signal.SIGTERM)
        assert wait(started) == [143, 143], group.everything()
    assert (
        "stopped by SIGTERM before the first step; the checkpoints are as they were"
        in group.said(1)
    )
    text = "ended: stopped by SIGTERM before the first step; the checkpoints are as they were"
    assert (
        "host 0 of 2 ends: host 1 (" in group.said(0)
        and text in group.said(0)
        and "start every host again" in group.said(0)
    )
    assert checkpointed(group.job) == 0 and not group.job.records()


def start(place, *words: str) -> subprocess.CompletedProcess:
    folder, shards, cache = place
    group = make_group(folder / "never", shards, cache, 2, STEPS)
    command = [sys.executable, str(HOST), "train", str(group.job.config), *words]
    return subprocess.run(
        command, env=environment(cache), capture_output=True, text=True, timeout=60
    )


def test_a_wrong_address_ends_the_command_in_the_stated_time_and_names_it(place):
    address = f"127.0.0.1:{free_port()}"
    ended = start(
        place,
        f"--coordinator-address={address}",
        "--num-processes=2",
        "--process-id=1",
        "--coordinator-timeout=2",
    )
    assert ended.returncode == 2
    assert (
        f"llm-jax train: error: coordinator address '{address}' could not be reached in 2 s"
        in ended.stderr
    )
    assert "Traceback" not in ended.stderr
