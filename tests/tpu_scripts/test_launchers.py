"""xpk.sh and skypilot.yaml: the same run through launchers of others."""

from __future__ import annotations

import os
import shlex
import subprocess
from itertools import pairwise

import pytest
import yaml
from cloud import SCRIPTS, Cloud, failed

RUN = ("configs/lm_1b.py", "--data.path=gs://bb/shards", "--train.out=gs://bb/runs/x")
GIVEN = {"CLUSTER": "big", "IMAGE": "repo/llm_jax:1"}
PLACE = ["--cluster", "big", "--project", "proj", "--zone", "us-west4-a"]


def xpk(cloud: Cloud, *words: str) -> list[str]:
    """The command that a dry run prints."""
    done = cloud.run("xpk.sh", *words, **GIVEN, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return shlex.split(line)


def options(command: list[str]) -> dict[str, str]:
    """--name value pairs; a flag without a value has ''."""
    pairs = zip(command, [*command[1:], "--"])
    return {
        word: "" if following.startswith("--") else following
        for word, following in pairs
        if word.startswith("--")
    }


def test_xpk_gets_the_same_command(cloud):
    odd = '--name=it\'s a "run"'
    command = xpk(cloud, "run", "--slices=2", *RUN, odd)
    assert command[:3] == ["xpk", "workload", "create"]
    said = options(command)
    assert shlex.split(said.pop("--command")) == ["exec", "llm-jax", "train", *RUN, odd]
    assert said == {
        "--workload": "lm",
        "--tpu-type": "v5litepod-16",
        "--num-slices": "2",
        "--docker-image": "repo/llm_jax:1",
        "--max-restarts": "50",
        "--restart-on-exit-codes": "1,75",
        "--termination-grace-period-seconds": "600",
        "--priority": "medium",
        "--cluster": "big",
        "--project": "proj",
        "--zone": "us-west4-a",
    }


def test_options_of_xpk(cloud):
    words = ["--spot", "--storage=runs", "--mount=/data", "--pod-env", "A=1 B=2"]
    command = xpk(cloud, *words, "configs/lm_1b.py", "--train.out=/data/x")
    said = options(command)
    assert {"--storage": "runs", "--spot": ""}.items() <= said.items()
    assert said["--termination-grace-period-seconds"] == "15"
    assert [value for name, value in pairwise(command) if name == "--env"] == ["A=1", "B=2"]
    assert options(xpk(cloud, "--flex-start", *RUN))["--flex"] == ""
    assert options(xpk(cloud, "--reservation=r", *RUN))["--reservation"] == "r"


def test_status_and_stop_of_xpk(cloud):
    assert xpk(cloud, "status") == ["xpk", "workload", "list", *PLACE]
    assert xpk(cloud, "stop") == ["xpk", "workload", "delete", "--workload", "lm", *PLACE]


@pytest.mark.parametrize(
    ("words", "settings", "text"),
    [
        (RUN, {"CLUSTER": ""}, "CLUSTER is not set: export CLUSTER=… or give --cluster"),
        (RUN, {"IMAGE": ""}, "IMAGE is not set"),
        (RUN, {"RESTART_ON": "1 2"}, "RESTART_ON has 2, which is a bad setting"),
        (RUN, {"RESTART_ON": "1,75"}, "RESTART_ON is '1,75'; give exit statuses between spaces"),
        (RUN, {"GRACE": "soon"}, "GRACE is 'soon'; give seconds"),
        (RUN, {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS is '-1'; give a whole number"),
        (RUN, {"POD_ENV": "A"}, "POD_ENV has 'A'; give NAME=VALUE words"),
        (["configs/lm_1b.py"], {}, "train.out is ''; give"),
        (["configs/lm_1b.py", "--train.out=/mnt/bucket/x"], {}, "give --storage, or paths such"),
        (
            [*RUN, "--data.path=/mnt/bucket/x"],
            {},
            "a path is in /mnt/bucket and nothing is mounted",
        ),
        (["status", "now"], {}, "unexpected 'now'"),
    ],
)
def test_runs_that_xpk_could_not_start(cloud, words, settings, text):
    failed(cloud.run("xpk.sh", *words, **GIVEN | settings, DRY_RUN="1"), 2, text)


def test_xpk_must_be_there(cloud):
    (cloud.place / "bin" / "xpk").write_text("#!/bin/sh\nexit 1\n")
    (cloud.place / "bin" / "xpk").chmod(0o755)
    failed(cloud.run("xpk.sh", "stop", **GIVEN), 1, "xpk did not stop lm; its words are above")


# SkyPilot -----------------------------------------------------------------------------------------

# Fields of docs.skypilot.co/en/latest/reference/yaml-spec.html.
TASK = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts"}
TASK |= {"setup", "run", "config", "service"}
RESOURCES = {"infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type"}
RESOURCES |= {"use_spot", "disk_size", "disk_tier", "network_tier", "image_id", "ports", "labels"}
RESOURCES |= {"any_of", "ordered", "job_recovery", "autostop", "max_hourly_cost"}


@pytest.fixture(scope="module")
def task() -> dict:
    return yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())


def test_the_task_has_fields_of_skypilot_and_one_slice(task):
    assert task.keys() <= TASK and task["resources"].keys() <= RESOURCES
    assert task["resources"]["accelerators"].startswith("tpu-v6e-")
    assert task["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv6e"}
    # A slice of several hosts is one node, on whose hosts SkyPilot runs the same.
    assert task["num_nodes"] == 1
    assert all(isinstance(value, str) for value in task["envs"].values())


@pytest.mark.process
@pytest.mark.parametrize(("out", "status"), [("gs://bb/runs/x", 7), ("/tmp/x", 2)])
def test_the_task_trains_under_the_supervisor(task, tmp_path, out, status):
    """Its run lines, with a trainer that notes its words and fails for good."""
    trainer = tmp_path / "llm_jax" / "venv" / "bin" / "llm-jax"
    trainer.parent.mkdir(parents=True)
    trainer.write_text('#!/bin/bash\necho "$@"\nexit 7\n')
    trainer.chmod(0o755)
    envs = {**task["envs"], "DATA": "gs://bb/shards", "OUT": out}
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        env={**os.environ, **envs, "HOME": str(tmp_path), "MAX_RESTARTS": "0", "LLM_JAX_RUN": ""},
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    log = tmp_path / "llm_jax" / "run" / "log"
    words = "train configs/lm_1b.py --data.path=gs://bb/shards --train.out=gs://bb/runs/x\n"
    assert (words in log.read_text()) if status == 7 else not log.exists()
