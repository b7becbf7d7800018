"""supervise.sh: what is started again, what is not, and that one run at a time goes on a host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cloud import SCRIPTS

pytestmark = pytest.mark.process

QUICK = {"DELAY": "0", "MAX_RESTARTS": "3"}


class Host:
    """A home folder; ``command`` is a shell script that gets the number of its start as $1."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "llm_jax" / "run"

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "LLM_JAX_RUN": "", **QUICK, **settings}

    def do(self, *words: str, **settings: str) -> subprocess.CompletedProcess:
        command = [str(SCRIPTS / "supervise.sh"), *words]
        environment = {**os.environ, "HOME": str(self.home), "LLM_JAX_RUN": "", **QUICK, **settings}
        return subprocess.run(
            command,
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, command: str, verb: str = "run", **settings: str) -> int:
        numbered = (
            f"n=$(cat n 2> /dev/null || echo 0); n=$((n + 1)); echo $n > n; set -- $n; {command}"
        )
        return self.do(verb, "--", "bash", "-c", numbered, **settings).returncode

    def start(self, command: str, **settings: str) -> int:
        return self.run(command, "start", **settings)

    def state(self) -> str:
        return self.do("state").stdout.partition(" ")[2].strip()

    def starts(self) -> int:
        return int((self.home / "n").read_text())

    def pid(self, of: str) -> int:
        return int((self.folder / of).read_text())

    def has_started(self) -> bool:
        log = self.folder / "log"
        return log.exists() and "\nstarted\n" in log.read_text()

    def wait_for(self, what) -> None:
        end = time.monotonic() + 30
        while not what():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.02)


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    if host.folder.exists():
        host.do("stop", STOP_SECONDS="20")


# A trainer: it saves on SIGTERM, which takes a moment, and exits as llm-jax train does.
TRAINER = 'trap "sleep 0.3; echo saved; exit 143" TERM; echo started; while :; do sleep 0.05; done'


def test_done_is_done(host):
    assert host.run("echo step 1") == 0
    assert (host.starts(), host.state()) == (1, "done")
    assert "step 1\n" in host.do("log", "100").stdout


@pytest.mark.parametrize("status", [2, 127, 126])
def test_what_starting_again_cannot_mend_is_not_started_again(host, status):
    assert host.run(f"exit {status}") == status
    assert (host.starts(), host.state()) == (1, f"failed {status}")


@pytest.mark.parametrize("status", [1, 137, 143, 255])
def test_a_crash_a_kill_and_a_preemption_start_it_again(host, status):
    """143 without a stop from here: another host was preempted, all have saved, and the run is to
    go on.
    """
    assert host.run(f"[ $1 -eq 3 ] || exit {status}") == 0
    assert (host.starts(), host.state()) == (3, "done")
    assert f"exit status {status}; start 2 of 3 again in 0 s" in (host.folder / "log").read_text()


def test_it_is_not_started_again_for_ever(host):
    assert host.run("exit 5") == 5
    assert (host.starts(), host.state()) == (4, "failed 5")


def test_a_start_that_lasted_clears_the_count(host):
    assert host.run("[ $1 -lt 10 ] && exit 5; exit 0", STEADY="0") == 0
    assert host.starts() == 10


def test_the_delay_doubles_up_to_its_limit(host):
    (host.home / "sleep").write_text("#!/bin/sh\n")
    (host.home / "sleep").chmod(0o755)
    assert (
        host.run(
            "exit 5",
            PATH=f"{host.home}:{os.environ['PATH']}",
            DELAY="10",
            MAX_DELAY="100",
            MAX_RESTARTS="6",
        )
        == 5
    )
    assert re.findall(r"again in (\d+) s", (host.folder / "log").read_text()) == [
        "10",
        "20",
        "40",
        "80",
        "100",
        "100",
    ]


def test_stop_waits_until_the_command_has_saved(host):
    assert host.start(TRAINER) == 0
    host.wait_for(host.has_started)
    assert host.state() == "running"
    done = host.do("stop")
    assert done.returncode == 0 and done.stdout.endswith(" stopped 143\n")
    assert "saved" in (host.folder / "log").read_text()
    assert host.starts() == 1


def test_stop_between_two_starts(host):
    assert host.start("exit 5", DELAY="1000") == 0
    host.wait_for(lambda: host.state() == "waiting")
    assert host.do("stop").stdout.endswith(" stopped 5\n")


def test_stop_gives_up_on_a_command_that_does_not_end(host):
    assert host.start('trap "" TERM; echo started; sleep 3') == 0
    host.wait_for(host.has_started)
    done = host.do("stop", STOP_SECONDS="1")
    assert done.returncode == 1 and "is still saving after 1 s; look at its log" in done.stderr


def test_stopping_what_is_not_going_says_so(host):
    assert host.do("stop").stdout.endswith(" none\n")
    assert host.run("exit 0") == 0
    assert host.do("stop").stdout.endswith(" done\n")


def test_one_run_at_a_time(host):
    assert host.start(TRAINER) == 0
    for verb in (host.start, host.run):
        assert verb("exit 0") == 1
    assert "a run is going" in host.do("start", "--", "true").stderr
    assert host.do("idle").returncode == 1
    assert host.do("stop").returncode == 0
    assert host.do("idle").returncode == 0
    assert host.run("exit 0") == 0


def test_a_host_that_has_started_anew_says_that_its_run_is_gone(host):
    assert host.start("echo started; exec sleep 60") == 0
    host.wait_for(host.has_started)
    os.kill(host.pid("pid"), signal.SIGKILL)
    assert host.state() == "running", "the command itself still has the chips"
    os.kill(host.pid("child"), signal.SIGKILL)
    host.wait_for(lambda: host.state() == "gone")
    assert host.run("exit 0") == 0


def test_where_the_supervisor_was_killed_stop_reaches_the_command(host):
    assert host.start(TRAINER) == 0
    host.wait_for(host.has_started)
    os.kill(host.pid("pid"), signal.SIGKILL)
    assert host.do("stop").returncode == 0
    assert "saved" in (host.folder / "log").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["start"], "usage: supervise.sh start -- COMMAND…"),
        (["run", "--"], "usage: supervise.sh run -- COMMAND…"),
        (["restart"], "unknown verb 'restart'; there are start run state idle stop log"),
        ([], "unknown verb ''"),
    ],
)
def test_mistakes(host, words, text):
    done = host.do(*words)
    assert done.returncode == 2 and text in done.stderr


def test_a_setting_that_is_no_number(host):
    done = host.do("state", MAX_RESTARTS="many")
    assert done.returncode == 2 and "MAX_RESTARTS is 'many'; give a whole number" in done.stderr


def test_a_dry_run_starts_nothing(host):
    done = host.do("run", "--", "touch", "made", DRY_RUN="1")
    assert (
        done.stdout == "run -- touch made\n"
        and not (host.home / "made").exists()
        and not host.folder.exists()
    )
