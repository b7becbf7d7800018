"""What a search may change of a config, with tokens a step as they are: mesh, remat, pieces of the
batch, splitting by position, and how microbatches go through the stages of a pipeline.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.config import Config
from llm_jax.config.overrides import flatten
from llm_jax.plan.estimate import Estimate, estimate
from llm_jax.plan.memory import unknown
from llm_jax.plan.shares import ways_of
from llm_jax.plan.topology import Slice, stand_ins
from llm_jax.sharding import MESH_AXES, make_mesh
from llm_jax.types import ConfigError

# From what keeps most to what computes most again.
REMATS = ("none", "dots", "names:query,key,value,attention_out", "names:attention_out", "full")
# Of each stage of a pipeline: at most a third of the steps idle, or a ninth; going round twice, a
# fifth, or a seventeenth.
MICROBATCHES = (2, 8)
REPEATS = (1, 2)


class Candidate(NamedTuple):
    """A config, the slice it can run on, and what is expected of it without a compiler."""

    config: Config
    slice: Slice
    expected: Estimate

    @property
    def memory(self) -> float:
        """Bytes of a chip."""
        return sum(self.expected.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory <= self.slice.chip.hbm


def with_mesh(config: Config, target: Slice) -> Config:
    """``config`` with -1 in its mesh replaced by the devices that are left. ConfigError for a mesh
    that the slice cannot have.
    """
    sizes = make_mesh(config.mesh, stand_ins(target)).shape  # type: ignore[arg-type]
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def meshes(devices: int, axes: Sequence[str] = MESH_AXES) -> Iterator[dict[str, int]]:
    """Every mesh over ``devices`` of ``axes``; the others are 1."""
    for sizes in itertools.product(divisors(devices), repeat=len(axes) - 1):
        last, over = divmod(devices, math.prod(sizes))
        if last and not over:
            yield {**dict.fromkeys(MESH_AXES, 1), **dict(zip(axes, (*sizes, last)))}


def candidates(config: Config, target: Slice) -> Iterator[Candidate]:
    """All that can run at all, whether or not it fits, in no order. Only mesh and execution change:
    a step of each reads the same tokens and computes the same update.
    """
    remats = dict.fromkeys((*REMATS, config.execution.remat))
    axes = [axis for axis in MESH_AXES if axis != "expert" or config.model.num_experts]
    for mesh in meshes(target.chips * target.chip.devices, axes):
        # A pipeline has more to choose from: whether positions are split does not multiply it.
        choose = mesh["tensor"] > 1 and mesh["pipeline"] == 1
        split = (True, False) if choose else (config.execution.shard_sequence,)
        for pieces, remat, shard_sequence in itertools.product(
            schedules(config, mesh), remats, split
        ):
            changed = with_settings(
                config, mesh, remat=remat, shard_sequence=shard_sequence, **pieces
            )
            if (found := candidate(changed, target)) is not None:
                yield found


def schedules(config: Config, mesh: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Into how many pieces the batch and the layers can be divided: accumulation steps, and
    microbatches and repeats through the stages of a pipeline, with those of a config that has as
    many.
    """
    stages, rows = mesh["pipeline"], config.data.batch_size
    through = dict.fromkeys(
        itertools.product((stages * n for n in MICROBATCHES), REPEATS) if stages > 1 else [(0, 1)]
    )
    if config.mesh.pipeline == stages:
        through[config.execution.microbatches, config.execution.pipeline_repeats] = None
    for accumulation, (microbatches, repeats) in itertools.product(divisors(rows), through):
        ways = ways_of("batch", mesh) * (microbatches or stages)
        if rows // accumulation % ways == 0 and config.model.num_layers % (stages * repeats) == 0:
            yield {
                "accumulation": accumulation,
                "microbatches": microbatches,
                "pipeline_repeats": repeats,
            }


def with_settings(
    config: Config, mesh: Mapping[str, int], *, accumulation: int, **execution: Any
) -> Config:
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **mesh),
        execution=dataclasses.replace(config.execution, **execution),
        train=dataclasses.replace(config.train, accumulation=accumulation),
    )


def candidate(config: Config, target: Slice) -> Candidate | None:
    """None where a dimension does not divide over the mesh, or nothing is known of such steps."""
    if unknown(config):
        return None
    try:
        return Candidate(config, target, estimate(config, target))
    except ConfigError:
        return None


def changes(before: Config, after: Config) -> dict[str, Any]:
    """Settings of ``after`` that are not those of ``before``; mesh axes all of them or none."""
    old, new = flatten(before), flatten(after)
    moved = any(old[key] != value for key, value in new.items() if key.startswith("mesh."))
    return {
        key: value
        for key, value in new.items()
        if old[key] != value or (moved and key.startswith("mesh.") and value > 1)
    }
