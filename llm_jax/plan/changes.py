"""What to change of a plan that does not fit: the cheapest few changes of different kinds, each
compiled to prove it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from llm_jax.config import Config
from llm_jax.plan.candidates import Candidate, candidate, candidates, changes, divisors, with_mesh
from llm_jax.plan.estimate import Estimate
from llm_jax.plan.search import Budget, Trial, check_effort, compile_candidates
from llm_jax.plan.step import Plan
from llm_jax.plan.topology import Slice, parse_topology
from llm_jax.types import ConfigError


def kinds(config: Config, target: Slice, c: Candidate) -> frozenset[str]:
    """What of the config a candidate changes: settings, ``mesh`` for all of its axes, ``slice`` for
    a larger one.
    """
    if c.slice != target:
        return frozenset({"slice"})
    return frozenset(
        "mesh" if key.startswith("mesh.") else key for key in changes(config, c.config)
    )


def larger(target: Slice, steps: int = 3) -> Iterator[Slice]:
    """The slices after ``target``: its shortest side doubled, again and again."""
    dims = list(target.dims)
    for _ in range(steps):
        shortest = min(range(len(dims)), key=lambda i: (dims[i], -i))
        dims[shortest] *= 2
        yield parse_topology(f"{target.chip_name}:{'x'.join(map(str, dims))}")


def options(config: Config, target: Slice) -> Iterator[Candidate]:
    """Everything that might help: other ways to run on the slice, smaller pieces of the vocabulary
    in the loss, larger slices.
    """
    here = with_mesh(config, target)
    yield from candidates(here, target)
    pieces = [2**n for n in range(1, 7) if config.model.vocab_size % 2**n == 0]
    smaller = [
        dataclasses.replace(here.execution, loss_chunk=config.model.vocab_size // n) for n in pieces
    ]
    for execution in smaller:
        if (found := candidate(dataclasses.replace(here, execution=execution), target)) is not None:
            yield found
    for more in larger(target):
        try:
            there = with_mesh(config, more)
        except ConfigError:
            # A mesh of fixed numbers: the new chips share parameters and batch.
            ways = more.chips // target.chips
            there = dataclasses.replace(
                here, mesh=dataclasses.replace(here.mesh, fsdp=here.mesh.fsdp * ways)
            )
        # With fewer rows for each chip, fewer pieces do.
        for accumulation in divisors(config.train.accumulation):
            changed = dataclasses.replace(
                there, train=dataclasses.replace(there.train, accumulation=accumulation)
            )
            if (found := candidate(changed, more)) is not None:
                yield found


def chip_seconds(target: Slice, timed: Plan | Estimate) -> float:
    """What a step costs: chips times the time that ways to run are ranked by."""
    return target.chips * timed.seconds.serial


def cheapest_changes(config: Config, target: Slice, effort: Budget, wanted: int = 3) -> list[Trial]:
    """At most ``wanted`` changes of different kinds with which the step fits, the cheapest first;
    fewer where the time or what there is does not give more. Few settings are changed before many.
    """
    check_effort(effort)
    here = with_mesh(config, target)
    fitting = [(kinds(here, target, c), c) for c in options(config, target) if c.fits]
    fitting = [(kind, c) for kind, c in fitting if kind]
    turns, seen = [], Counter[frozenset[str]]()
    for kind, c in sorted(
        fitting, key=lambda x: (len(x[0]), chip_seconds(x[1].slice, x[1].expected))
    ):
        turns.append((seen[kind], len(kind), c))
        seen[kind] += 1
    chosen = [c for *_, c in sorted(turns, key=lambda t: t[:2])][: effort.candidates]
    proved: dict[frozenset[str], Trial] = {}
    for _, t in compile_candidates(
        chosen, effort, "compiling changes that may fit", lambda _: len(proved) >= wanted
    ):
        if t.plan:
            proved.setdefault(kinds(here, target, t.candidate), t)
    return sorted(proved.values(), key=lambda t: chip_seconds(t.candidate.slice, t.plan))[:wanted]  # type: ignore[arg-type]
