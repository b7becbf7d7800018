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
import re
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


def option(argv: list[str], name: str, default: str = "") -> str:
    """The value of ``--name=value`` or ``--name value``."""
    for word, following in zip(argv, [*argv[1:], ""]):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}":
            return following
    return default


def homes(argv: list[str], place: str) -> list[Path]:
    """The folders of the hosts that a call reaches, of a node, a request or an instance."""
    every = sorted((PLACE / "hosts").glob("*/*"))
    if argv[1] != "tpus":
        return [home for home in every if home.name == place]
    if argv[2] == "queued-resources":
        mine = [home for home in every if re.fullmatch(rf"{place}(-\d+)?", home.parent.name)]
    else:
        mine = [home for home in every if home.parent.name == place]
    worker = option(argv, "worker")
    return mine if worker == "all" else [home for home in mine if home.name == worker][:1]


def place_of(argv: list[str]) -> int:
    """Where the name stands: after compute tpus GROUP VERB, or after compute VERB."""
    return 4 if argv[1] == "tpus" else 2


def ssh(argv: list[str]) -> int:
    status = 0
    for home in homes(argv, argv[place_of(argv)]):
        path = f"{PLACE / 'host_bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(home), "PATH": path, "DRY_RUN": "0"}
        done = subprocess.run(
            ["bash", "-c", option(argv, "command")],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            print(
                f"##### Command execution on worker {home.name} failed with exit status"
                f" {done.returncode}. Continuing.",
                file=sys.stderr,
            )
            status = status or done.returncode
    return status


def scp(argv: list[str]) -> int:
    source, target = argv[place_of(argv) :][:2]
    if target.endswith(":"):
        for home in homes(argv, target[:-1]):
            shutil.copy(source, home)
    else:
        shutil.copytree(source.partition(":")[2], Path(target) / Path(source).name)
    return 0


def delete(argv: list[str]) -> int:
    """The nodes go, with what runs on them."""
    if argv[1] not in ("tpus", "instances", "instance-groups"):
        return 0
    name = argv[4] if argv[1] == "tpus" else argv[argv.index("delete") + 1]
    for node in (PLACE / "hosts").glob(f"{name}*"):
        for file in [*node.glob("*/llm_jax/run/pid"), *node.glob("*/llm_jax/run/child")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(node)
    return 0


def create(argv: list[str]) -> int:
    """New nodes have empty disks."""
    if argv[1] == "tpus":
        name, workers = argv[4], range(int((PLACE / "workers").read_text()))
        count = int(option(argv, "node-count", "1"))
        nodes = [name] if count == 1 else [f"{name}-{i}" for i in range(count)]
        made = [(node, str(worker)) for node in nodes for worker in workers]
    elif argv[1] == "instances":
        made = [(argv[3], argv[3])]
    elif argv[1] == "instance-groups":
        made = [(argv[4], f"{argv[4]}-x{i}") for i in range(int(option(argv, "size")))]
    else:
        made = []
    for node, host in made:
        (PLACE / "hosts" / node / host).mkdir(parents=True)
    return 0


def list_instances(argv: list[str]) -> int:
    for home in sorted((PLACE / "hosts" / argv[4]).iterdir()):
        print("RUNNING" if "instanceStatus" in option(argv, "format") else home.name)
    return 0


VERBS = {
    "ssh": ssh,
    "scp": scp,
    "create": create,
    "delete": delete,
    "list-instances": list_instances,
}


def main(argv: list[str]) -> int:
    answer = next_answer(argv)
    print(answer.get("out", ""), end="")
    print(answer.get("err", ""), end="", file=sys.stderr)
    if "status" in answer:
        return answer["status"]
    argv = argv[argv[0] == "alpha" :]
    verb = next((word for word in argv[1:4] if word in VERBS), None)
    return VERBS[verb](argv) if verb and "out" not in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
