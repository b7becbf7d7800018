"""Changes that make a config fit a slice: the cheapest of different kinds, each compiled."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from llm_jax.config import Config
from llm_jax.plan.candidates import Candidate, candidate, candidates, changes, divisors, with_mesh
from llm_jax.plan.estimate import Estimate
from llm_jax.plan.search import Budget, Trial, check_budget, compile_candidates
from llm_jax.plan.step import Plan
from llm_jax.plan.topology import Slice, parse_topology
from llm_jax.types import ConfigError


def kinds(config: Config, target: Slice, c: Candidate) -> frozenset[str]:
    """The settings that a candidate changes.

    Returns:
        Names of settings; ``mesh`` stands for all mesh axes, and ``slice`` alone for a larger
        slice.
    """
    if c.slice != target:
        return frozenset({"slice"})
    return frozenset(
        "mesh" if key.startswith("mesh.") else key for key in changes(config, c.config)
    )


def larger(target: Slice, steps: int = 3) -> Iterator[Slice]:
    """The next larger slices: each step doubles the shortest dimension."""
    dims = list(target.dims)
    for _ in range(steps):
        shortest = min(range(len(dims)), key=lambda i: (dims[i], -i))
        dims[shortest] *= 2
        yield parse_topology(f"{target.chip_name}:{'x'.join(map(str, dims))}")


def options(config: Config, target: Slice) -> Iterator[Candidate]:
    """Every change that may help.

    These are the candidates of a search on this slice, smaller chunks of the vocabulary in the
    loss, and larger slices.
    """
    here = with_mesh(config, target)
    yield from candidates(here, target)
    yield from _smaller_loss_chunks(here, target)
    for more in larger(target):
        yield from _on_larger_slice(config, here, target, more)


def _smaller_loss_chunks(config: Config, target: Slice) -> Iterator[Candidate]:
    vocab_size = config.model.vocab_size
    for pieces in (2**n for n in range(1, 7)):
        if vocab_size % pieces:
            continue
        execution = dataclasses.replace(config.execution, loss_chunk=vocab_size // pieces)
        found = candidate(dataclasses.replace(config, execution=execution), target)
        if found is not None:
            yield found


def _on_larger_slice(
    config: Config, here: Config, target: Slice, more: Slice
) -> Iterator[Candidate]:
    """Candidates on the slice ``more``. here: ``config`` with its mesh on ``target`` in numbers."""
    try:
        there = with_mesh(config, more)
    except ConfigError:
        # The mesh has fixed sizes: the additional chips share parameters and batch.
        ways = more.chips // target.chips
        mesh = dataclasses.replace(here.mesh, fsdp=here.mesh.fsdp * ways)
        there = dataclasses.replace(here, mesh=mesh)
    # With fewer rows per chip, fewer accumulation steps are enough.
    for accumulation in divisors(config.train.accumulation):
        train = dataclasses.replace(there.train, accumulation=accumulation)
        found = candidate(dataclasses.replace(there, train=train), more)
        if found is not None:
            yield found


def chip_seconds(target: Slice, timed: Plan | Estimate) -> float:
    """The cost of a step: chips times ``seconds.serial``, by which configurations are ranked."""
    return target.chips * timed.seconds.serial


def cheapest_changes(config: Config, target: Slice, budget: Budget, wanted: int = 3) -> list[Trial]:
    """Changes of different kinds with which the step fits, the cheapest first.

    Changes of few settings are compiled before changes of many.

    Returns:
        At most ``wanted`` trials that fit; fewer where the time limit or the number of candidates
        does not allow more.
    """
    check_budget(budget)
    here = with_mesh(config, target)
    proved: dict[frozenset[str], Trial] = {}
    trials = compile_candidates(
        _in_order(config, target, here)[: budget.candidates],
        budget,
        "compiling changes that may fit",
        lambda _: len(proved) >= wanted,
    )
    for _, trial in trials:
        if trial.plan:
            proved.setdefault(kinds(here, target, trial.candidate), trial)
    return sorted(proved.values(), key=_trial_cost)[:wanted]


def _trial_cost(trial: Trial) -> float:
    assert trial.plan is not None
    return chip_seconds(trial.candidate.slice, trial.plan)


def _in_order(config: Config, target: Slice, here: Config) -> list[Candidate]:
    """The fitting options in the order in which they are compiled: the best of each kind first."""
    fitting = [(kinds(here, target, c), c) for c in options(config, target) if c.fits]
    fitting = [(kind, c) for kind, c in fitting if kind]
    fitting.sort(key=lambda pair: (len(pair[0]), chip_seconds(pair[1].slice, pair[1].expected)))
    seen = Counter[frozenset[str]]()
    turns = []
    for kind, c in fitting:
        turns.append((seen[kind], len(kind), c))
        seen[kind] += 1
    return [c for *_, c in sorted(turns, key=lambda turn: turn[:2])]
