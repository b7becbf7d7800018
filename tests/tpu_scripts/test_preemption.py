"""launch.sh --supervise: what it does for every state that the slice and its hosts can be in, and a
real run through a preemption.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jobs
import pytest
from cloud import Cloud, failed

pytestmark = pytest.mark.process

RUN = ["--supervise", "configs/lm_1b.py", "--train.out=/mnt/bucket/runs/x"]
SETTINGS = {"NO_BUCKET": "1", "REMAKE_DELAY": "0", "SPOT": "1"}
START, STATE, STOP = (f"ssh supervise.sh {verb}" for verb in ("start", "state", "stop"))
LOOK = ["describe", "describe"]
MADE = ["delete", "create", *LOOK, "ssh supervise.sh idle", "scp", "ssh install.sh"]


def states(cloud: Cloud, *said: str) -> None:
    """What the hosts say at every look, in turn."""
    cloud.answer("ssh", status=0)
    cloud.answer("scp", status=0)
    for text in said:
        cloud.answer("ssh", "supervise.sh state", out=text, status=0)


def test_it_looks_until_the_run_is_done(cloud):
    states(cloud, "w-0 running\nw-1 running\n", "w-0 done\nw-1 running\n", "w-0 done\nw-1 done\n")
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert cloud.short() == [START, *[*LOOK, STATE] * 3]


def test_a_bad_setting_ends_it_and_stops_the_others(cloud):
    states(cloud, "w-0 running\nw-1 running\n", "w-0 failed 2\nw-1 waiting\n")
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    failed(
        done,
        2,
        "the run ended with exit status 2 and is not started again; tpu_scripts/logs.sh says why",
    )
    assert cloud.short() == [START, *[*LOOK, STATE] * 2, STOP]


def test_a_run_that_was_stopped_is_left_alone(cloud):
    states(cloud, "w-0 stopped 143\nw-1 running\n", "w-0 stopped 143\nw-1 stopped 143\n")
    failed(
        cloud.run("launch.sh", *RUN, **SETTINGS),
        143,
        "the run was stopped and has saved; the same command goes on",
    )


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "FAILED"])
def test_a_slice_that_was_taken_away_is_made_anew(cloud, state):
    states(cloud, "w-0 running\n", "w-0 done\n")
    for said in ("ACTIVE", state, state, "ACTIVE"):
        cloud.answer("describe", "state.state", "lm", out=f"{said}\n")
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert f"launch.sh: lm is {state}; try 1 of 10 to go on" in done.stderr
    assert cloud.short() == [
        START,
        *LOOK,
        STATE,
        "describe",
        "describe",
        *MADE,
        START,
        *LOOK,
        STATE,
    ]
    delete, create = (
        next(call for call in cloud.calls() if call[1] == verb) for verb in ("delete", "create")
    )
    assert delete[2:5] == ["lm", "--force", "--quiet"]
    assert "--spot" in create and create[3:5] == ["--accelerator-type", "v5litepod-16"]


def test_one_preempted_node_of_two_is_enough(cloud):
    states(cloud, "w-0 done\n")
    for said in ("PREEMPTED", "READY"):
        cloud.answer("tpu-vm", "describe", "lm-1", out=f"{said}\n")
    done = cloud.run("launch.sh", "--slices=2", *RUN, **SETTINGS)
    assert done.returncode == 0 and "node lm-1 is PREEMPTED; try 1 of 10 to go on" in done.stderr
    assert next(c for c in cloud.calls() if c[1] == "create")[7:12] == [
        "--node-count",
        "2",
        "--node-prefix",
        "lm",
        "--spot",
    ]


def test_a_group_of_compute_engine_is_made_anew_with_its_template(cloud):
    (cloud.place / "hosts" / "lm" / "lm-x0").mkdir(parents=True)
    (cloud.place / "hosts" / "lm" / "lm-x1").mkdir()
    states(cloud, "w-0 running\n", "w-0 done\n")
    for second in ("TERMINATED", "RUNNING"):
        cloud.answer("list-instances", "instanceStatus", out=f"RUNNING\n{second}\n")
    words = ["--api=compute-engine", "--topology=v6e:2x4", "--accelerator-type=x", *RUN]
    failed(cloud.run("launch.sh", *words, **SETTINGS), 2, "ACCELERATOR_TYPE is 'x'")
    words.remove("--accelerator-type=x")
    done = cloud.run("launch.sh", *words, **{**SETTINGS, "ACCELERATOR_TYPE": ""})
    assert done.returncode == 0, done.stderr
    assert "launch.sh: node lm is TERMINATED; try 1 of 10 to go on" in done.stderr
    changes = [c[:3] for c in cloud.calls() if "delete" in c[:4] or "create" in c[:4]]
    assert [words[1] for words in changes] == [
        *("instance-groups", "instance-templates", "resource-policies"),
        *("resource-policies", "instance-templates", "instance-groups"),
    ]


def test_a_quota_that_is_spent_for_a_while(cloud):
    """Nothing is deleted twice: after the first try there is nothing to delete."""
    states(cloud, "w-0 done\n")
    for said in (
        {"out": "SUSPENDED\n"},
        {"out": "SUSPENDED\n"},
        *[{"err": "NOT_FOUND\n", "status": 1}] * 2,
        {"out": "ACTIVE\n"},
    ):
        cloud.answer("describe", "state.state", "lm", **said)
    cloud.answer("create", err="ERROR: RESOURCE_EXHAUSTED: Quota limit\n", status=1, times=2)
    cloud.answer("create", status=0)
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert (cloud.short().count("delete"), cloud.short().count("create")) == (1, 3)
    assert "the quota of proj" in done.stderr and "try 3 of 10" in done.stderr


def test_it_does_not_try_for_ever(cloud):
    states(cloud, "w-0 running\n")
    cloud.answer("describe", "state.state", "lm", out="SUSPENDED\n")
    cloud.answer("create", err="ERROR: no\n", status=1)
    done = cloud.run("launch.sh", "--remake-tries", "2", *RUN, **SETTINGS)
    failed(
        done, 1, "lm is SUSPENDED, and 2 tries to go on have failed", "What is left may cost money"
    )
    assert cloud.short().count("create") == 2


def test_what_somebody_deleted_is_not_made_again(cloud):
    states(cloud, "w-0 running\n")
    cloud.answer("describe", "state.state", "lm", out="ACTIVE\n")
    cloud.answer(
        "describe",
        "state.state",
        "lm",
        err="ERROR: NOT_FOUND: Resource 'lm' was not found\n",
        status=1,
    )
    failed(cloud.run("launch.sh", *RUN, **SETTINGS), 1, "lm was deleted; it is not made again")
    assert "create" not in cloud.short()


def test_a_host_that_started_anew_makes_all_start_again(cloud):
    states(cloud, "w-0 running\nw-1 gone\n", "w-0 running\nw-1 running\n", "w-0 done\nw-1 done\n")
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert cloud.short() == [START, *LOOK, STATE, *LOOK, STOP, START, *LOOK, STATE, *LOOK, STATE]


def test_a_host_that_is_gone_since_its_slice_was_taken_away_meanwhile(cloud):
    """Between two questions of one look: the next look sees the truth."""
    states(cloud, "w-0 gone\n", "w-0 done\n")
    for said in ("ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "ACTIVE"):
        cloud.answer("describe", "state.state", "lm", out=f"{said}\n")
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert cloud.short() == [
        START,
        *LOOK,
        STATE,
        "describe",
        "describe",
        "describe",
        *MADE,
        START,
        *LOOK,
        STATE,
    ]


def test_a_host_with_a_new_disk_is_set_up_again(cloud):
    states(cloud)
    cloud.answer("ssh", "supervise.sh state", err="bash: supervise.sh: No such file\n", status=127)
    cloud.answer("ssh", "supervise.sh state", out="w-0 done\n", status=0)
    cloud.answer("ssh", "supervise.sh stop", status=127)
    done = cloud.run("launch.sh", *RUN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert cloud.short() == [
        *(START, *LOOK, STATE, *LOOK, STOP),
        *("ssh supervise.sh idle", "scp", "ssh install.sh", START, *LOOK, STATE),
    ]


def test_a_network_that_is_away_for_a_while(cloud):
    states(cloud)
    cloud.answer("ssh", "supervise.sh state", err="ssh: timeout\n", status=255, times=19)
    cloud.answer("ssh", "supervise.sh state", out="w-0 done\n", status=0)
    assert cloud.run("launch.sh", *RUN, **SETTINGS).returncode == 0
    assert "delete" not in cloud.short()


def test_a_network_that_stays_away_ends_the_looking_and_nothing_else(cloud):
    states(cloud)
    cloud.answer("ssh", "supervise.sh state", err="ssh: timeout\n", status=255)
    failed(
        cloud.run("launch.sh", *RUN, **SETTINGS),
        1,
        "lm or its hosts cannot be reached, twenty times in a row",
        "the run may be going",
    )
    assert not {"delete", STOP} & set(cloud.short())


# A real run ---------------------------------------------------------------------------------------

STEPS = 24


def wait_for(what, watching, output: Path) -> None:
    end = time.monotonic() + 120
    while not what():
        assert watching.poll() is None and time.monotonic() < end, output.read_text()
        time.sleep(0.05)


def kill(folder: Path, *names: str) -> None:
    for name in names:
        os.kill(int((folder / name).read_text()), signal.SIGKILL)


def test_a_real_run_goes_on_after_a_crash_and_after_a_preemption(tmp_path):
    """create, setup, launch; the trainer is killed, then the whole slice taken away. The folder
    that stands for the bucket stays.
    """
    cloud, bucket = Cloud(tmp_path), tmp_path / "bucket"
    config = jobs.write_config(
        tmp_path / "job.py", jobs.settings(jobs.make_shards(bucket / "shards"), Path("x"), STEPS)
    )
    environment = {
        **jobs.environment(tmp_path / "cache"),
        "DELAY": "0",
        "NO_BUCKET": "1",
        "MOUNT": str(bucket),
        "REMAKE_DELAY": "0",
    }
    settings = {k: v for k, v in environment.items() if os.environ.get(k) != v} | {"POLL": "1"}
    for script in ("create.sh", "setup.sh"):
        done = cloud.run(script, **settings)
        assert done.returncode == 0, done.stderr
    out, host, output = (
        bucket / "runs" / "job",
        tmp_path / "hosts" / "lm" / "0" / "llm_jax" / "run",
        tmp_path / "output",
    )
    job = jobs.Job(config, out, tmp_path / "cache")
    watching = cloud.start(
        "launch.sh", "--supervise", str(config), f"--train.out={out}", **settings
    )
    try:
        wait_for(lambda: jobs.checkpointed(job) >= 3, watching, output)
        kill(host, "child")
        crashed = jobs.checkpointed(job)
        wait_for(lambda: jobs.checkpointed(job) >= crashed + 3, watching, output)
        log = (host / "log").read_text()
        cloud.change("describe", "state.state", "lm", out="SUSPENDED\n")
        kill(host, "pid", "child")
        wait_for(lambda: "create" in [call[1] for call in cloud.calls()[3:]], watching, output)
        cloud.change("describe", "state.state", "lm", out="ACTIVE\n")
        assert watching.wait(120) == 0, output.read_text()
    finally:
        watching.kill()
    assert "exit status 137; start 1 of 10 again in 0 s" in log and "going on from step" in log
    assert re.search(r"lm is SUSPENDED; try \d of 10 to go on", output.read_text())
    again = (host / "log").read_text()
    assert (
        "start 1 of 10" not in again
        and "going on from step" in again
        and "supervise.sh: done" in again
    )
    whole = jobs.Job(config, tmp_path / "whole", tmp_path / "cache")
    subprocess.run(
        [*whole.command, f"--train.out={whole.out}"],
        env=jobs.environment(whole.cache),
        check=True,
        capture_output=True,
    )
    assert jobs.result(job) == jobs.result(whole), "bit for bit"
