"""The scripts of tpu_scripts/, run with a stand-in gcloud before any other on the PATH."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
SLICE = {
    "PROJECT": "proj",
    "ZONE": "us-west4-a",
    "NAME": "lm",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "POLL": "0",
}
PLACE_WORDS = ["--project", "proj", "--zone", "us-west4-a"]
CONFIG = ("configs/lm_1b.py", "--train.out=/mnt/bucket/runs/x")
# Every variable that a script reads, which a developer may have exported for slices of their own.
SETTINGS = {
    word
    for script in SCRIPTS.glob("*.sh")
    for word in re.findall(r"\b[A-Z][A-Z_]+\b", script.read_text())
} - {"PATH", "HOME"}

# A machine of the slice: its Python makes environments whose llm-jax is the copied checkout, run by
# the Python of the tests.
HOST_PYTHON = f"""#!/bin/bash
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho "$@" >> "$HOME/pip"\\n' > "$3/bin/pip"
printf '#!/bin/bash\\nPYTHONPATH=$HOME/llm_jax/source ' > "$3/bin/llm-jax"
printf 'exec {sys.executable} -m llm_jax.cli "$@"\\n' >> "$3/bin/llm-jax"
chmod +x "$3"/bin/*
"""


class Cloud:
    """A cloud with queued resources that become ACTIVE at once, their nodes READY, ``workers``
    hosts each.
    """

    def __init__(self, place: Path, workers: int = 1) -> None:
        self.place, self.rules = place, []
        for name, text in {
            "bin/gcloud": (
                f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("stand_in.py")} "$@"\n'
            ),
            "host_bin/python3.12": HOST_PYTHON,
            "calls": "",
            "workers": str(workers),
        }.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(text)
            (place / name).chmod(0o755)
        self.answer("queued-resources", "describe", "state.state", out="ACTIVE\n")
        self.answer("tpu-vm", "describe", out="READY\n")

    def answer(self, *words: str, times: int = 1, **answer: object) -> None:
        """What a call with these words gets, in the order of these lines; the newest set of words
        goes first.
        """
        rule = next((r for r in self.rules if r["words"] == list(words)), None)
        if rule is None:
            rule = {"words": list(words), "answers": []}
            self.rules.insert(0, rule)
        rule["answers"] += [answer] * times
        (self.place / "rules").write_text(json.dumps(self.rules))

    def change(self, *words: str, **answer: object) -> None:
        """From now on, also while a script runs: only this answer."""
        self.rules = [r for r in self.rules if r["words"] != list(words)]
        self.answer(*words, **answer)

    def environment(self, **settings: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        path = f"{self.place / 'bin'}:{os.environ['PATH']}"
        return {
            **inherited,
            **SLICE,
            "PATH": path,
            "STAND_IN": str(self.place),
            "HOME": str(self.place),
            **settings,
        }

    def start(self, script: str, *words: str, **settings: str) -> subprocess.Popen:
        command = [str(SCRIPTS / script), *words]
        output = (self.place / "output").open("w")
        return subprocess.Popen(
            command,
            env=self.environment(**settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        command = [str(SCRIPTS / script), *words]
        return subprocess.run(
            command,
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        """The arguments of every call so far, without a leading ``compute tpus``."""
        calls = [json.loads(line) for line in (self.place / "calls").read_text().splitlines()]
        return [call[2:] if call[:2] == ["compute", "tpus"] else call for call in calls]

    def short(self) -> list[str]:
        """The calls by their verbs; on ssh the script on the host and its verb."""
        pattern = r"supervise\.sh (?:start|state|idle|stop|log)|(?:install|mount)\.sh"
        scripts = [re.findall(pattern, " ".join(call)) for call in self.calls()]
        return [
            f"ssh {names[-1]}" if call[1] == "ssh" else call[1]
            for call, names in zip(self.calls(), scripts)
        ]

    def hosts(self) -> list[Path]:
        return sorted((self.place / "hosts").glob("*/*"))


def failed(done: subprocess.CompletedProcess, status: int, *texts: str) -> None:
    """A script's end: its exit status, and what its error says."""
    assert done.returncode == status, done.stderr
    for text in texts:
        assert text in done.stderr
