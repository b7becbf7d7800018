"""Compiles several steps at once until a time limit, each in its own process.

A running compilation cannot be stopped; a process can.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from llm_jax.config import Config
from llm_jax.config.saved import from_json, to_json
from llm_jax.plan.step import Plan, plan_step
from llm_jax.plan.topology import Slice, parse_topology
from llm_jax.types import ConfigError


def compile_steps(
    jobs: Sequence[tuple[Config, Slice]], *, workers: int, deadline: float
) -> Iterator[tuple[int, Plan | str]]:
    """Compiles jobs in their order, ``workers`` at a time, and yields results as they are ready.

    Args:
        jobs: configs and the TPU slices to compile them for.
        workers: processes that run at the same time.
        deadline: in seconds of ``time.monotonic``. Jobs that are not ready then are stopped and
            left out, as they are where the caller closes the generator.

    Yields:
        The index of a job, and its Plan or the reason why there is none.
    """
    # A forked process would share the threads and locks of a compiler that is already loaded.
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(jobs))
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < deadline:
                index, job = waiting.pop(0)
                connection, process = _started(context, job)
                running[connection] = (index, process)
            ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            for done in ready:
                index, process = running.pop(done)
                yield index, _received(done, process)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _started(context: Any, job: tuple[Config, Slice]) -> tuple[Connection, Any]:
    """A process that compiles a job, and the connection on which it sends its result."""
    config, target = job
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(sender, to_json(config), target.name), daemon=True
    )
    process.start()
    sender.close()
    return receiver, process


def _work(connection: Connection, config: dict[str, Any], topology: str) -> None:
    from jax.errors import JaxRuntimeError

    try:
        found: Plan | str = plan_step(from_json(config), parse_topology(topology))
    except (ConfigError, JaxRuntimeError) as error:  # this candidate fails, the others continue
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    connection.send(found)
    connection.close()


def _received(connection: Any, process: Any) -> Plan | str:
    try:
        found = connection.recv()
    except EOFError:
        process.join()
        return (
            f"the compiling process ended with status {process.exitcode}; a negative status means"
            " that it was killed, often for lack of memory"
        )
    process.join()
    return found
