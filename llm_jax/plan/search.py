"""The best way to run a config on a slice: everything that can run, pruned without a compiler, the
best of the rest compiled.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
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
# What the estimate of time may be off by between two ways to run.
_SLOWER = 1.25


class Budget(NamedTuple):
    """candidates: compiled at most · workers: side by side, each takes 1 to 2 GB · time_limit:
    seconds for all of them.
    """

    candidates: int
    workers: int
    time_limit: float


class Trial(NamedTuple):
    """A candidate and what the compiler said of it: its plan, or in ``reason`` why it has none."""

    candidate: Candidate
    plan: Plan | None
    reason: str


class Search(NamedTuple):
    """walked: candidates that can run · fitting: of them, with room by the estimate · ranking:
    compiled, best first, then refused ones · waiting: chosen and not ready at the time limit, by
    what is expected of them.
    """

    slice: Slice
    walked: int
    fitting: int
    ranking: list[Trial]
    waiting: list[Candidate]
    seconds: float

    @property
    def best(self) -> Trial | None:
        return next((t for t in self.ranking if t.plan), None)


def rank(tried: Trial) -> tuple[bool, bool, float]:
    """Sorts what was tried: what fits before what does not, times that are known before lower
    bounds, less time first.
    """
    plan = tried.plan
    if plan is None:
        return True, False, tried.candidate.expected.seconds.serial
    return False, is_lower_bound(plan.traffic), plan.seconds.serial


def search(config: Config, target: Slice, effort: Budget) -> Search:
    """Walks meshes, remat, pieces of the batch, sequence sharding and schedules of a pipeline, and
    compiles those that promise most.

    Raises ConfigError where nothing fits, with what the nearest lacked.
    """
    check_effort(effort)
    if why := unknown(config):
        raise ConfigError(why)
    if target.chip.platform != "tpu":
        raise ConfigError(f"--search compiles for TPU slices; {target.name} is none")
    devices(target)
    began = time.monotonic()
    walked = list(candidates(config, target))
    if not walked:
        raise ConfigError(
            f"no mesh over the devices of {target.name} divides this model and its batch of"
            f" {config.data.batch_size} rows"
        )
    fitting = [c for c in walked if c.memory <= MARGIN * target.chip.hbm]
    if not fitting:
        raise ConfigError(_nothing_fits(config, target, walked))
    chosen = most_promising(fitting)[: effort.candidates]
    tried = dict(compile_candidates(chosen, effort, "compiling candidates"))
    ranking = sorted(tried.values(), key=rank)
    waiting = [c for i, c in enumerate(chosen) if i not in tried]
    return Search(target, len(walked), len(fitting), ranking, waiting, time.monotonic() - began)


def check_effort(effort: Budget) -> None:
    """ConfigError for a limit that nothing passes."""
    for name, value in effort._asdict().items():
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be positive")


def most_promising(found: Iterable[Candidate]) -> list[Candidate]:
    """Those within a quarter of the fastest expected: first the best of each mesh, two that differ
    in data and fsdp alone at a turn, then the others. What the estimate cannot know, such as which
    collectives a mesh becomes, differs most by mesh.
    """
    fast = sorted(found, key=lambda c: c.expected.seconds.serial)
    fast = [
        c for c in fast if c.expected.seconds.serial <= _SLOWER * fast[0].expected.seconds.serial
    ]
    meshes, alike = Counter[Any](), Counter[Any]()
    turns = []
    for c in fast:
        mesh = c.config.mesh
        kind = (mesh.tensor, mesh.context, mesh.expert, mesh.pipeline)
        turns.append((meshes[mesh], alike[kind] // 2, c))
        meshes[mesh] += 1
        alike[kind] += meshes[mesh] == 1
    return [c for *_, c in sorted(turns, key=lambda turn: turn[:2])]


def compile_candidates(
    chosen: list[Candidate],
    effort: Budget,
    description: str,
    enough: Callable[[list[Trial]], bool] = lambda _: False,
) -> Iterable[tuple[int, Trial]]:
    """(place in ``chosen``, what was found), as they are ready, until all are, the time is over, or
    what there is is ``enough``.
    """
    out: list[Trial] = []
    deadline, jobs = time.monotonic() + effort.time_limit, [(c.config, c.slice) for c in chosen]
    with progress(description, total=len(jobs)) as bar:
        for i, found in compile_steps(jobs, workers=effort.workers, deadline=deadline):
            plan = found if isinstance(found, Plan) and not found.refused else None
            out.append(
                Trial(
                    chosen[i],
                    plan,
                    "" if plan else found.refused if isinstance(found, Plan) else found,
                )
            )
            bar.advance(1, fitting=sum(t.plan is not None for t in out))
            yield i, out[-1]
            if enough(out):
                return


def _nothing_fits(config: Config, target: Slice, walked: list[Candidate]) -> str:
    nearest, hbm = min(walked, key=lambda c: c.memory), target.chip.hbm
    how = (
        ", ".join(f"{key}={value}" for key, value in changes(config, nearest.config).items())
        or "the config as it is"
    )
    most = max(nearest.expected.memory, key=nearest.expected.memory.__getitem__)
    return (
        f"nothing fits {target.name}: of {len(walked):,} ways to run it the nearest ({how}) needs"
        f" about {nearest.memory / _GIB:.1f} GiB of each chip's {hbm / _GIB:.0f},"
        f" {nearest.expected.memory[most] / _GIB:.1f} of it {most}; take more chips, a smaller"
        " model or shorter rows"
    )
