"""Joining the other hosts of a run: which process this is of how many, told by flags, environment
or the cluster, never by the config.

One process per host. On a TPU pod, under Slurm or Open MPI jax knows by itself; elsewhere each
process is told:

    llm-jax train CONFIG --coordinator-address=10.0.0.2:8476 --num-processes=4 --process-id=2

or by the environment, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from llm_jax.multihost.rendezvous import parse, rendezvous
from llm_jax.types import ConfigError

# Flag -> environment variable. The first is jax's own name, the others those in use beside it.
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
"""


class Place(NamedTuple):
    """What this process was told: empty address for a run of one process, or for a cluster that jax
    knows.
    """

    address: str = ""
    count: int = 1
    index: int = 0
    timeout: float = TIMEOUT


def split_flags(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this module among ``words`` of a command line, and the other words. ConfigError
    for one without a value.
    """
    told: dict[str, str] = {}
    rest, words = [], list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.replace("_", "-") not in FLAGS:
            rest.append(word)
            continue
        if not equals and not words:
            raise ConfigError(f"--{name} has no value")
        told[name.replace("_", "-")] = value if equals else words.pop(0)
    return told, rest


def place(told: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands: what flags say, else the environment; None when neither says so.

    Raises ConfigError for half of it and for what is no number.
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
    if found.count == 1:
        return Place()
    if not address or not index:
        missing = "coordinator-address" if not address else "process-id"
        raise ConfigError(
            f"--num-processes={count} without --{missing}; give it, or {FLAGS[missing]} in the"
            " environment"
        )
    if not 0 <= found.index < found.count:
        raise ConfigError(
            f"--process-id={found.index} of --num-processes={found.count}; it must be from 0 to"
            f" {found.count - 1}"
        )
    parse(address)
    return found


def join(told: Mapping[str, str]) -> bool:
    """Connects this process to the others of the run; call it before anything else of jax. True
    when there are others.

    Raises ConfigError, see ``place`` and ``rendezvous``.
    """
    # jax's own would swallow SIGTERM; here a signal goes with the batches, see feed.
    jax.config.update("jax_enable_preemption_service", False)
    found = place(told)
    if found is None and _in_a_cluster():
        jax.distributed.initialize()
    elif found is not None and found.count > 1:
        _order_collectives()
        rendezvous(found.address, found.count, found.index, found.timeout)
        jax.distributed.initialize(found.address, found.count, found.index)
    if not jax.distributed.is_initialized():
        return False
    if jax.default_backend() == "cpu" and jax.config.jax_platforms != "cpu":
        raise ConfigError(
            "several processes on CPUs: set JAX_PLATFORMS=cpu for each, so that they keep one order"
            " of collectives"
        )
    return jax.process_count() > 1


def _order_collectives() -> None:
    """On CPUs jax 0.10 starts independent collectives of one step in any order, and processes mix
    them up; this scheduler does not.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_platforms == "cpu" and "xla_cpu_scheduler_type" not in flags:
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        )


def _in_a_cluster() -> bool:
    """Whether jax can tell by itself what processes there are: the question that ``initialize()``
    asks first, and has no name for.
    """
    from jax._src.clusters import ClusterEnv

    return any(
        not kind.opt_in_only_method and kind.is_env_present() for kind in ClusterEnv._cluster_types
    )
