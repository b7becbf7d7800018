"""A gcloud for tests: notes its arguments, answers as it was told, and lets folders stand for
hosts.

What it does on ssh is what gcloud does (command_lib/compute/tpus/tpu_vm/ssh.py): the command runs
on all workers, a worker that fails is named on the error output, and one worker's exit status is
the whole one's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PLACE = Path(os.environ["STAND_IN"])


def next_answer(argv: list[str]) -> dict:
    """Notes the call; the answer of the first rule whose words are all in it, its last one for
    ever.
    """
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (PLACE / "calls").open("a") as calls:
            calls.write(json.dumps(argv) + "\n")
        rules = json.loads((PLACE / "rules").read_text())
        for rule in rules:
            if all(any(word in arg for arg in argv) for word in rule["words"]):
                answer = rule["answers"][0]
                rule["answers"] = rule["answers"][1:] or [answer]
                (PLACE / "rules").write_text(json.dumps(rules))
                return answer
    return {}


def homes(node: str, worker: str) -> dict[str, Path]:
    every = {home.name: home for home in sorted((PLACE / "hosts" / node).iterdir())}
    return every if worker == "all" else {worker: every[worker]}


def option(argv: list[str], name: str) -> str:
    return next(a.partition("=")[2] for a in argv if a.startswith(f"--{name}="))


def ssh(argv: list[str]) -> int:
    status, command = 0, option(argv, "command")
    for worker, home in homes(argv[4], option(argv, "worker")).items():
        path = f"{PLACE / 'host_bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(home), "PATH": path, "DRY_RUN": "0"}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            print(
                f"##### Command execution on worker {worker} failed with exit status"
                f" {done.returncode}. Continuing.",
                file=sys.stderr,
            )
            status = status or done.returncode
    return status


def scp(argv: list[str]) -> int:
    source, target = argv[4:6]
    if target.endswith(":"):
        for home in homes(target[:-1], option(argv, "worker")).values():
            shutil.copy(source, home)
    else:
        shutil.copytree(source.partition(":")[2], Path(target) / Path(source).name)
    return 0


def delete(argv: list[str]) -> int:
    """The nodes go, with what runs on them."""
    for node in (PLACE / "hosts").glob(f"{argv[4]}*"):
        for file in [*node.glob("*/llm_jax/run/pid"), *node.glob("*/llm_jax/run/child")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(node)
    return 0


def create(argv: list[str]) -> int:
    """New nodes have empty disks."""
    name, workers = argv[4], int((PLACE / "workers").read_text())
    count = int(argv[argv.index("--node-count") + 1]) if "--node-count" in argv else 1
    for node in [name] if count == 1 else [f"{name}-{i}" for i in range(count)]:
        for worker in range(workers):
            (PLACE / "hosts" / node / str(worker)).mkdir(parents=True)
    return 0


def main(argv: list[str]) -> int:
    answer = next_answer(argv)
    print(answer.get("out", ""), end="")
    print(answer.get("err", ""), end="", file=sys.stderr)
    if "status" in answer:
        return answer["status"]
    act = {"ssh": ssh, "scp": scp, "create": create, "delete": delete}.get(argv[3])
    return act(argv) if act else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
