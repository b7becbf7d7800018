"""Runs of several processes on this machine, each as a person would start it, with faults put into
chosen ones.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jobs

# Only what hangs takes so long: beside tests on eight devices, each of them a thread, a process
# here gets a tenth of a core.
PATIENCE = 400.0
HOST = Path(__file__).with_name("host.py")


def tiny(shards: tuple[Path, ...], out: Path, steps: int, **more: Any) -> dict[str, Any]:
    """A job whose start is most of its time; float32, no wait for anything."""
    values = {
        **jobs.settings(shards, out, steps),
        "data.batch_size": 16,
        "optimizer.learning_rate": 1e-3,
    }
    return values | {"train.eval_every": 0, "train.checkpoint_every": 100, **more}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class HostGroup(NamedTuple):
    """The processes of one run: ``devices`` CPU devices each."""

    job: jobs.Job
    processes: int
    devices: int = 1

    def start(
        self,
        faults: dict[int, str] | None = None,
        configs: dict[int, Path] | None = None,
        **environment: str,
    ) -> list[subprocess.Popen]:
        """One process per host. faults: what goes wrong on which (see host.py). configs: where one
        reads another file.
        """
        port, started = free_port(), []
        for index in range(self.processes):
            env = {
                **jobs.environment(self.job.cache),
                "JAX_NUM_CPU_DEVICES": str(self.devices),
                "PYTHONFAULTHANDLER": "1",
                **environment,
            }
            # Compiling for one host's kind of processor is all there is here; its notes on others
            # are long.
            env |= {"TF_CPP_MIN_LOG_LEVEL": "2", "FAULT": (faults or {}).get(index, "")}
            words = [
                sys.executable,
                str(HOST),
                "train",
                str((configs or {}).get(index, self.job.config)),
            ]
            if self.processes > 1:
                words += [
                    f"--coordinator-address=127.0.0.1:{port}",
                    f"--num-processes={self.processes}",
                    f"--process-id={index}",
                ]
            with self.log(index).open("a") as log:
                started.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
        return started

    def log(self, index: int) -> Path:
        return self.job.config.parent / f"host{index}.log"

    def said(self, index: int) -> str:
        return self.log(index).read_text()

    def everything(self) -> str:
        return "\n".join(
            f"--- host {i}\n{self.said(i)[-6000:]}"
            for i in range(self.processes)
            if self.log(i).exists()
        )

    def finish(self, **environment: str) -> None:
        """Run it to its end, which must be a good one."""
        with ended(self.start(**environment)) as started:
            assert wait(started) == [0] * self.processes, self.everything()


def make_group(
    folder: Path,
    shards: tuple[Path, ...],
    cache: Path,
    processes: int,
    steps: int,
    devices: int = 1,
    **more: Any,
) -> HostGroup:
    out = folder / "run"
    return HostGroup(
        jobs.Job(
            jobs.write_config(folder / "job.py", tiny(shards, out, steps, **more)), out, cache
        ),
        processes,
        devices,
    )


def wait(started: list[subprocess.Popen], timeout: float = PATIENCE) -> list[int]:
    """Exit statuses, once all have ended. subprocess.TimeoutExpired when they do not."""
    deadline = time.monotonic() + timeout
    return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in started]


@contextmanager
def ended(started: list[subprocess.Popen]) -> Iterator[list[subprocess.Popen]]:
    """No process outlives the test."""
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def until(
    reached: Any, started: list[subprocess.Popen], group: HostGroup, timeout: float = PATIENCE
) -> None:
    """Waits until ``reached()``; fails when a process ends before."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline and all(p.poll() is None for p in started), (
            group.everything()
        )
        time.sleep(0.02)
