"""The configurations that a search considers.

A candidate differs from the given config in mesh, rematerialization, accumulation, sequence
sharding and pipeline schedule. The tokens of a step stay the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.config import Config
from llm_jax.config.sections import flatten
from llm_jax.plan.estimate import Estimate, estimate
from llm_jax.plan.memory import unknown
from llm_jax.plan.shares import ways_of
from llm_jax.plan.topology import Slice, stand_ins
from llm_jax.sharding import MESH_AXES, make_mesh
from llm_jax.types import ConfigError

# From the policy that keeps the most activations to the one that recomputes the most.
REMATS = ("none", "dots", "names:query,key,value,attention_out", "names:attention_out", "full")
# Microbatches per pipeline stage. The pipeline idles for at most a third of the steps with 2 and
# a ninth with 8; with two repeats, for a fifth and a seventeenth.
MICROBATCHES = (2, 8)
REPEATS = (1, 2)


class Candidate(NamedTuple):
    """A config, the slice it can run on, and its estimate, made without a compiler."""

    config: Config
    slice: Slice
    expected: Estimate

    @property
    def memory(self) -> float:
        """Estimated bytes per chip."""
        return sum(self.expected.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory <= self.slice.chip.hbm


def with_mesh(config: Config, target: Slice) -> Config:
    """Replaces -1 in the mesh of ``config`` by the number of remaining devices.

    Raises:
        ConfigError: the slice has no such mesh.
    """
    sizes = make_mesh(config.mesh, stand_ins(target)).shape
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def meshes(devices: int, axes: Sequence[str] = MESH_AXES) -> Iterator[dict[str, int]]:
    """Every mesh of ``devices`` devices over ``axes``; the other axes have size 1."""
    for sizes in itertools.product(divisors(devices), repeat=len(axes) - 1):
        last, remainder = divmod(devices, math.prod(sizes))
        if last and not remainder:
            yield {**dict.fromkeys(MESH_AXES, 1), **dict(zip(axes, (*sizes, last)))}


def candidates(config: Config, target: Slice) -> Iterator[Candidate]:
    """All configurations that can run on ``target``, whether or not they fit, in no order.

    Only the mesh and the execution change: a step of each candidate reads the same tokens and
    computes the same update.
    """
    remats = dict.fromkeys((*REMATS, config.execution.remat))
    axes = [axis for axis in MESH_AXES if axis != "expert" or config.model.experts]
    for mesh in meshes(target.chips * target.chip.devices, axes):
        # A pipeline has many schedules already: sequence sharding does not multiply them.
        choose = mesh["tensor"] > 1 and mesh["pipeline"] == 1
        sequence = (True, False) if choose else (config.execution.shard_sequence,)
        settings = itertools.product(schedules(config, mesh), remats, sequence)
        for schedule, remat, shard_sequence in settings:
            changed = with_settings(
                config, mesh, remat=remat, shard_sequence=shard_sequence, **schedule
            )
            found = candidate(changed, target)
            if found is not None:
                yield found


def schedules(config: Config, mesh: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The accumulation steps, microbatches and repeats into which batch and layers divide.

    The schedule of ``config`` itself is among them where the mesh has as many stages.
    """
    stages = mesh["pipeline"]
    rows = config.data.batch_size
    pipelined = itertools.product((stages * n for n in MICROBATCHES), REPEATS)
    choices = dict.fromkeys(pipelined if stages > 1 else [(0, 1)])
    if config.mesh.pipeline == stages:
        choices[config.execution.microbatches, config.execution.pipeline_repeats] = None
    for accumulation, (microbatches, repeats) in itertools.product(divisors(rows), choices):
        ways = ways_of("batch", mesh) * (microbatches or stages)
        rows_divide = rows // accumulation % ways == 0
        layers_divide = config.model.num_layers % (stages * repeats) == 0
        if rows_divide and layers_divide:
            yield {
                "accumulation": accumulation,
                "microbatches": microbatches,
                "pipeline_repeats": repeats,
            }


def with_settings(
    config: Config, mesh: Mapping[str, int], *, accumulation: int, **execution: Any
) -> Config:
    """``config`` with another mesh, accumulation, and fields of ``execution``."""
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **mesh),
        execution=dataclasses.replace(config.execution, **execution),
        train=dataclasses.replace(config.train, accumulation=accumulation),
    )


def candidate(config: Config, target: Slice) -> Candidate | None:
    """The candidate of a config; None where a dimension does not divide or no estimate exists."""
    if unknown(config):
        return None
    try:
        return Candidate(config, target, estimate(config, target))
    except ConfigError:
        return None


def changes(before: Config, after: Config) -> dict[str, Any]:
    """The settings of ``after`` that differ from ``before``.

    If one mesh axis differs, all mesh axes of ``after`` larger than 1 are included.
    """
    old = flatten(before)
    new = flatten(after)
    moved = any(old[key] != value for key, value in new.items() if key.startswith("mesh."))
    return {
        key: value
        for key, value in new.items()
        if old[key] != value or (moved and key.startswith("mesh.") and value > 1)
    }
