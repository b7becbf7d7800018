"""Searches the best way to run a config on a slice.

All configurations that can run are estimated without a compiler; the most promising are compiled.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from llm_jax.config import Config
from llm_jax.plan.candidates import Candidate, candidates, changes
from llm_jax.plan.compiled import is_lower_bound
from llm_jax.plan.memory import MARGIN, unknown
from llm_jax.plan.parallel import compile_steps
from llm_jax.plan.step import Plan
from llm_jax.plan.topology import Slice, devices
from llm_jax.progress import progress
from llm_jax.types import ConfigError

_GIB = 2**30
# The largest error of the estimated ratio of two configurations' times.
_SLOWER = 1.25


class Budget(NamedTuple):
    """Limits of a search.

    Attributes:
        candidates: compiled at most.
        workers: compiled at the same time; each takes 1 to 2 GB of memory.
        time_limit: seconds for all of them.
    """

    candidates: int
    workers: int
    time_limit: float


class Trial(NamedTuple):
    """A candidate with its compiled plan, or None and the ``reason``."""

    candidate: Candidate
    plan: Plan | None
    reason: str


class Search(NamedTuple):
    """The result of a search.

    Attributes:
        slice: the topology.
        considered: how many configurations can run.
        fitting: how many of them fit by the estimate.
        ranking: the compiled ones, best first, then the refused ones.
        not_ready: chosen, but not compiled at the time limit, in the order expected.
        seconds: time that the search took.
    """

    slice: Slice
    considered: int
    fitting: int
    ranking: list[Trial]
    not_ready: list[Candidate]
    seconds: float

    @property
    def best(self) -> Trial | None:
        return next((t for t in self.ranking if t.plan), None)


def rank(trial: Trial) -> tuple[bool, bool, float]:
    """Sort key of trials: fitting before refused, known times before lower bounds, faster first."""
    plan = trial.plan
    if plan is None:
        return True, False, trial.candidate.expected.seconds.serial
    return False, is_lower_bound(plan.traffic), plan.seconds.serial


def search(config: Config, target: Slice, budget: Budget) -> Search:
    """Compiles the most promising meshes, remat policies, accumulations and pipeline schedules.

    Raises:
        ConfigError: ``target`` is no TPU slice, no estimate exists for the config, or nothing fits;
            the message then says what the nearest configuration lacks.
    """
    check_budget(budget)
    if why := unknown(config):
        raise ConfigError(why)
    if target.chip.platform != "tpu":
        raise ConfigError(f"--search compiles for TPU slices; {target.name} is not a TPU slice")
    devices(target)
    began = time.monotonic()
    considered = list(candidates(config, target))
    if not considered:
        raise ConfigError(
            f"no mesh over the devices of {target.name} divides this model and its batch of"
            f" {config.data.batch_size} rows"
        )
    fitting = [c for c in considered if c.memory <= MARGIN * target.chip.hbm]
    if not fitting:
        raise ConfigError(_nothing_fits(config, target, considered))
    chosen = most_promising(fitting)[: budget.candidates]
    trials = dict(compile_candidates(chosen, budget, "compiling candidates"))
    return Search(
        slice=target,
        considered=len(considered),
        fitting=len(fitting),
        ranking=sorted(trials.values(), key=rank),
        not_ready=[c for i, c in enumerate(chosen) if i not in trials],
        seconds=time.monotonic() - began,
    )


def check_budget(budget: Budget) -> None:
    """Raises ConfigError for a limit that is not positive."""
    for name, value in budget._asdict().items():
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be positive")


def most_promising(found: Iterable[Candidate]) -> list[Candidate]:
    """Candidates in the order in which they are worth compiling.

    Only those within a quarter of the fastest expected time are kept. The best of each mesh come
    first, two at a turn of the meshes that differ in data and fsdp alone, then the others: what the
    estimate cannot know, such as which collectives the compiler makes, differs most by mesh.
    """
    ordered = sorted(found, key=lambda c: c.expected.seconds.serial)
    limit = _SLOWER * ordered[0].expected.seconds.serial
    of_mesh = Counter[Any]()
    of_kind = Counter[Any]()
    turns = []
    for c in ordered:
        if c.expected.seconds.serial > limit:
            break
        mesh = c.config.mesh
        kind = (mesh.tensor, mesh.context, mesh.expert, mesh.pipeline)
        turns.append((of_mesh[mesh], of_kind[kind] // 2, c))
        of_mesh[mesh] += 1
        of_kind[kind] += of_mesh[mesh] == 1
    return [c for *_, c in sorted(turns, key=lambda turn: turn[:2])]


def compile_candidates(
    chosen: list[Candidate],
    budget: Budget,
    description: str,
    enough: Callable[[list[Trial]], bool] = lambda _: False,
) -> Iterator[tuple[int, Trial]]:
    """Compiles candidates and yields results as they are ready.

    Args:
        chosen: the candidates, in their order.
        budget: workers and time limit.
        description: of the progress bar.
        enough: ends the work when it returns True for the trials so far.

    Yields:
        The index in ``chosen``, and the trial.
    """
    trials: list[Trial] = []
    deadline = time.monotonic() + budget.time_limit
    jobs = [(c.config, c.slice) for c in chosen]
    with progress(description, total=len(jobs)) as bar:
        for i, found in compile_steps(jobs, workers=budget.workers, deadline=deadline):
            trials.append(_trial(chosen[i], found))
            bar.advance(1, fitting=sum(t.plan is not None for t in trials))
            yield i, trials[-1]
            if enough(trials):
                return


def _trial(c: Candidate, found: Plan | str) -> Trial:
    if isinstance(found, str):
        return Trial(c, None, found)
    if found.refused:
        return Trial(c, None, found.refused)
    return Trial(c, found, "")


def _nothing_fits(config: Config, target: Slice, considered: list[Candidate]) -> str:
    nearest = min(considered, key=lambda c: c.memory)
    changed = changes(config, nearest.config)
    setting = ", ".join(f"{key}={value}" for key, value in changed.items())
    memory = nearest.expected.memory
    most = max(memory, key=memory.__getitem__)
    return (
        f"nothing fits {target.name}: of {len(considered):,} ways to run it the nearest"
        f" ({setting or 'the config as it is'}) needs about {nearest.memory / _GIB:.1f} GiB of each"
        f" chip's {target.chip.hbm / _GIB:.0f}, {memory[most] / _GIB:.1f} of it {most}; take more"
        " chips, a smaller model or shorter rows"
    )
