"""Joining the other hosts of a run.

One process per host. Which process this is, of how many, comes from flags, the environment or the
cluster, never from the config. On a TPU pod, under Slurm or Open MPI jax finds out by itself;
elsewhere each process is told:

    llm-jax train CONFIG --coordinator-address=10.0.0.2:8476 --num-processes=4 --process-id=2

or by the environment, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from llm_jax.multihost.jax_service import knows_cluster
from llm_jax.multihost.rendezvous import BIND_VARIABLE, TOKEN_VARIABLE, parse, rendezvous
from llm_jax.types import ConfigError

# Flag -> environment variable. The first three variables are jax's own.
FLAGS = {
    "coordinator-address": "JAX_COORDINATOR_ADDRESS",
    "num-processes": "JAX_NUM_PROCESSES",
    "process-id": "JAX_PROCESS_ID",
    "coordinator-timeout": "LLM_JAX_COORDINATOR_TIMEOUT",
}
TIMEOUT = 120
HELP = f"""many hosts: on each, --coordinator-address=HOST:PORT (of process 0) --num-processes=N
  --process-id=0…N-1, or the environment {", ".join(list(FLAGS.values())[:3])};
  nothing on TPU pods, Slurm and Open MPI. --coordinator-timeout={TIMEOUT} seconds for all to come.
  {TOKEN_VARIABLE}=TEXT, the same on each, refuses processes that do not know it.
"""


class Place(NamedTuple):
    """The place of this process in a run.

    Attributes:
        address: ``HOST:PORT`` of process 0; empty for a run of one process.
        processes: number of processes.
        process_id: of this process, from 0.
        timeout: seconds for all processes to come.
    """

    address: str = ""
    processes: int = 1
    process_id: int = 0
    timeout: float = TIMEOUT


def split_flags(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the flags of this module from the other words of a command line.

    Returns:
        The values of the flags by name, and the other words.

    Raises:
        ConfigError: a flag without a value.
    """
    told: dict[str, str] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not word.startswith("--") or name not in FLAGS:
            rest.append(word)
            continue
        if not equals and not left:
            raise ConfigError(f"{word} has no value")
        told[name] = value if equals else left.pop(0)
    return told, rest


def place(told: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process by its flags, or else the environment.

    Args:
        told: values of flags by name, as ``split_flags`` returns them.
        environment: variables of the environment.

    Returns:
        None where neither has the number of processes.

    Raises:
        ConfigError: a part is missing, or a value is not valid.
    """
    values = {flag: told.get(flag) or environment.get(name, "") for flag, name in FLAGS.items()}
    address, count, index, timeout = values.values()
    if not count and not index:
        return None
    if not count:
        raise ConfigError(f"--process-id={index} without --num-processes; give both")
    try:
        found = Place(address, int(count), int(index or 0), float(timeout or TIMEOUT))
    except ValueError as error:
        raise ConfigError(
            f"--num-processes={count!r} --process-id={index!r} --coordinator-timeout={timeout!r}:"
            f" {error}"
        ) from error
    if found.processes == 1:
        return Place()
    if not address or not index:
        missing = "coordinator-address" if not address else "process-id"
        raise ConfigError(
            f"--num-processes={count} without --{missing}; give it, or {FLAGS[missing]} in the"
            " environment"
        )
    if not 0 <= found.process_id < found.processes:
        raise ConfigError(
            f"--process-id={found.process_id} of --num-processes={found.processes}; it must be"
            f" from 0 to {found.processes - 1}"
        )
    parse(address)
    return found


def join(told: Mapping[str, str]) -> bool:
    """Connect this process to the others of the run; call it before any other use of jax.

    Args:
        told: values of flags by name, as ``split_flags`` returns them.

    Returns:
        Whether there are other processes.

    Raises:
        ConfigError: as ``place`` and ``rendezvous``; or processes on CPUs without
            JAX_PLATFORMS=cpu.
    """
    # jax's own service would take SIGTERM; here the batches carry it, see ``global_batch.Feed``.
    jax.config.update("jax_enable_preemption_service", False)
    found = place(told)
    if found is None and knows_cluster():
        jax.distributed.initialize()
    elif found is not None and found.processes > 1:
        _connect(found)
    if not jax.distributed.is_initialized():
        return False
    if jax.default_backend() == "cpu" and _platforms() != "cpu":
        raise ConfigError(
            "several processes on CPUs: set JAX_PLATFORMS=cpu for each, so that they keep one order"
            " of collectives"
        )
    return jax.process_count() > 1


def _connect(found: Place) -> None:
    _order_collectives()
    bind = os.environ.get(BIND_VARIABLE, "")
    rendezvous(
        found.address,
        found.processes,
        found.process_id,
        found.timeout,
        token=os.environ.get(TOKEN_VARIABLE, ""),
        bind=bind,
    )
    # By default jax listens on every address of process 0.
    jax.distributed.initialize(
        found.address,
        found.processes,
        found.process_id,
        coordinator_bind_address=bind or found.address,
    )


def _order_collectives() -> None:
    """Have XLA start the collectives of a step in one order on every process.

    On CPUs jax 0.10 starts independent collectives in any order, and processes mix them up; this
    scheduler does not.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _platforms() == "cpu" and "xla_cpu_scheduler_type" not in flags:
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        )


def _platforms() -> str | None:
    """``JAX_PLATFORMS``, or what the program has set in its place."""
    return jax.config.values["jax_platforms"]
