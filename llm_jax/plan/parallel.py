"""Several steps compiled side by side, a process each, until a time limit: a compiler that runs
cannot be stopped, a process can.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from llm_jax.config import Config
from llm_jax.config.overrides import from_json, to_json
from llm_jax.plan.step import Plan, plan_step
from llm_jax.plan.topology import Slice, parse_topology
from llm_jax.types import ConfigError


def compile_steps(
    jobs: Sequence[tuple[Config, Slice]], *, workers: int, deadline: float
) -> Iterator[tuple[int, Plan | str]]:
    """(index of the job, its Plan or why there is none) as they are ready, begun in their order,
    ``workers`` at a time.

    deadline: in seconds of ``time.monotonic``; what is not ready then is stopped and left out, as
    it is where the caller closes the generator. TPU slices only.
    """
    # A forked process would share the threads and locks of a compiler that is already loaded.
    context, waiting, running = multiprocessing.get_context("spawn"), list(enumerate(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < deadline:
                index, (config, target) = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(there, to_json(config), target.name), daemon=True
                )
                process.start()
                there.close()
                running[here] = (index, process)
            ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            for connection in ready:
                index, process = running.pop(connection)
                yield index, _received(connection, process)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _work(connection: Connection, config: dict[str, Any], topology: str) -> None:
    from jax.errors import JaxRuntimeError

    try:
        found: Plan | str = plan_step(from_json(config), parse_topology(topology))
    except (ConfigError, JaxRuntimeError) as error:  # of one candidate: the others go on
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    connection.send(found)
    connection.close()


def _received(connection: Any, process: Any) -> Plan | str:
    try:
        found = connection.recv()
    except EOFError:
        process.join()
        return (
            f"the compiling process ended with status {process.exitcode}; with a negative one it"
            " was killed, often for memory"
        )
    process.join()
    return found
