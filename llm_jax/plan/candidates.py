"""What a search may change of a config, with tokens a step as they are: mesh, remat, pieces of the batch, splitting by position."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llm_jax.config import Config
from llm_jax.overrides import flatten
from llm_jax.plan.estimate import Estimate, estimate
from llm_jax.plan.memory import AXES, ways_of
from llm_jax.plan.topology import Slice, stand_ins
from llm_jax.sharding import make_mesh
from llm_jax.types import ConfigError

# From what keeps most to what computes most again.
REMATS = ("none", "dots", "names:query,key,value,attention_out", "names:attention_out", "full")


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
    """``config`` with -1 in its mesh replaced by the devices that are left. ConfigError for a mesh that the slice cannot have."""
    sizes = make_mesh(config.mesh, stand_ins(target)).shape  # type: ignore[arg-type]
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Every mesh over ``devices`` of the axes that the estimate of memory knows."""
    for sizes in itertools.product(divisors(devices), repeat=len(AXES) - 1):
        last, over = divmod(devices, math.prod(sizes))
        if last and not over:
            yield dict(zip(AXES, (*sizes, last)))


def candidates(config: Config, target: Slice) -> Iterator[Candidate]:
    """All that can run at all, whether or not it fits, in no order. Only mesh and execution change: a step of each reads the same tokens
    and computes the same update.
    """
    remats = dict.fromkeys((*REMATS, config.execution.remat))
    for mesh in meshes(target.chips * target.chip.devices):
        split = (True, False) if mesh["tensor"] > 1 else (config.execution.shard_sequence,)
        ways = ways_of("batch", dataclasses.asdict(dataclasses.replace(config.mesh, **mesh)))
        pieces = [p for p in divisors(config.data.batch_size) if config.data.batch_size // p % ways == 0]
        for remat, shard_sequence, accumulation in itertools.product(remats, split, pieces):
            changed = with_settings(config, mesh, remat=remat, shard_sequence=shard_sequence, accumulation=accumulation)
            if (found := candidate(changed, target)) is not None:
                yield found


def with_settings(config: Config, mesh: Mapping[str, int], *, accumulation: int, **execution: Any) -> Config:
    return dataclasses.replace(
        config, mesh=dataclasses.replace(config.mesh, **mesh), execution=dataclasses.replace(config.execution, **execution),
        train=dataclasses.replace(config.train, accumulation=accumulation),
    )


def candidate(config: Config, target: Slice) -> Candidate | None:
    """None where a dimension does not divide over the mesh."""
    try:
        return Candidate(config, target, estimate(config, target))
    except ConfigError:
        return None


def changes(before: Config, after: Config) -> dict[str, Any]:
    """Settings of ``after`` that are not those of ``before``; mesh axes all of them or none."""
    old, new = flatten(before), flatten(after)
    moved = any(old[key] != value for key, value in new.items() if key.startswith("mesh."))
    return {key: value for key, value in new.items() if old[key] != value or (moved and key.startswith("mesh.") and value > 1)}
