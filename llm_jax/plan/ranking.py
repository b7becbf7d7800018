"""Tables and plain values of a search, and of the changes that make a plan fit."""

from __future__ import annotations

from typing import Any

from llm_jax.config import Config
from llm_jax.plan.candidates import Candidate, changes
from llm_jax.plan.changes import chip_seconds
from llm_jax.plan.compiled import is_lower_bound
from llm_jax.plan.report import mesh_name, mfu
from llm_jax.plan.search import Search, Trial
from llm_jax.plan.step import Plan
from llm_jax.plan.topology import Slice

_GIB = 2**30


def settings_line(c: Candidate) -> str:
    """A candidate's mesh and execution in one line."""
    execution = c.config.execution
    mesh = c.config.mesh
    parts = [
        mesh_name(vars(mesh)),
        f"remat {execution.remat}",
        f"accumulation {c.config.train.accumulation}",
    ]
    if mesh.pipeline > 1:
        parts.append(f"microbatches {execution.microbatches or mesh.pipeline}")
        if execution.pipeline_repeats > 1:
            parts.append(f"{execution.pipeline_repeats} repeats")
    if mesh.tensor > 1 and not execution.shard_sequence:
        parts.append("sequence not sharded")
    return ", ".join(parts)


def search_table(s: Search) -> str:
    """The ranking as a table."""
    out = [
        (
            f"  search {s.slice.name}: {s.considered:,} ways to run it,"
            f" {s.fitting:,} with room by the estimate,"
            f" {len(s.ranking)} tried in {s.seconds:.0f} s"
        ),
        "  ranked by ms, the time with all links in use and nothing overlapped",
        "  est. is the memory estimated before compiling",
        "",
        f"    {'':>2} {'ms':>9} {'at best':>9} {'MFU':>6} {'GiB':>7} {'est.':>7}  how",
    ]
    for i, trial in enumerate(s.ranking, 1):
        if trial.plan:
            bound = is_lower_bound(trial.plan.traffic)
            remark = "; at least, as it has loops of unknown trips" if bound else ""
            numbers = _numbers(trial.plan, trial.candidate)
            out.append(f"    {i:>2} {numbers}  {settings_line(trial.candidate)}{remark}")
    for trial in s.ranking:
        if not trial.plan:
            out.append(f"    no {settings_line(trial.candidate)}: {trial.reason}")
    if s.not_ready:
        out += [
            "",
            "  not compiled at the time limit, in the order expected; more time: --time-limit",
            "",
        ]
    for c in s.not_ready:
        milliseconds = c.expected.seconds.serial * 1e3
        estimated = f"{milliseconds:>9,.0f} ms expected, {c.memory / _GIB:.2f} GiB"
        out.append(f"       {estimated}: {settings_line(c)}")
    return "\n".join(out)


def _numbers(p: Plan, c: Candidate) -> str:
    used = sum(p.memory.values())
    times = f"{p.seconds.serial * 1e3:>9,.0f} {p.seconds.at_best * 1e3:>9,.0f} {mfu(p):>6.1%}"
    return f"{times} {used / _GIB:>7.2f} {c.memory / _GIB:>7.2f}"


def search_figures(s: Search) -> dict[str, Any]:
    """A Search as plain values for JSON, in seconds and bytes."""
    return {
        "topology": s.slice.name,
        "ways": s.considered,
        "fitting_by_estimate": s.fitting,
        "seconds": s.seconds,
        "ranking": [_trial_figures(t) for t in s.ranking],
        "not_ready": [_settings(c) for c in s.not_ready],
    }


def _settings(c: Candidate) -> dict[str, Any]:
    return {
        "mesh": dict(vars(c.config.mesh)),
        "remat": c.config.execution.remat,
        "shard_sequence": c.config.execution.shard_sequence,
        "loss_chunk": c.config.execution.loss_chunk,
        "accumulation": c.config.train.accumulation,
        "microbatches": c.config.execution.microbatches,
        "pipeline_repeats": c.config.execution.pipeline_repeats,
        "expected_memory_bytes_per_chip": c.memory,
        "expected_seconds": c.expected.seconds,
    }


def _trial_figures(t: Trial) -> dict[str, Any]:
    out = {"topology": t.candidate.slice.name, **_settings(t.candidate), "refused": t.reason}
    if t.plan:
        out |= {
            "memory_bytes_per_chip": sum(t.plan.memory.values()),
            "seconds_ranked_by": t.plan.seconds.serial,
            "seconds_at_best": t.plan.seconds.at_best,
            "mfu_causal_at_best": mfu(t.plan),
            "flops_traced_over_model": t.plan.flops["traced"] / t.plan.flops["model, full"],
            "bytes_sent_per_device": sum(x.bytes for x in t.plan.traffic),
            "traffic_is_lower_bound": is_lower_bound(t.plan.traffic),
            "compile_seconds": t.plan.compile_seconds,
        }
    return out


def changes_table(config: Config, target: Slice, found: list[Trial], wanted: int) -> str:
    """Changes that make a plan fit ``target``, as a table.

    Args:
        config: the config, with its mesh in numbers.
        target: the slice that it does not fit.
        found: the compiled changes.
        wanted: how many were looked for.
    """
    if not found:
        return (
            "  no change of mesh, remat, accumulation, loss chunk or slice that was tried makes"
            " it fit"
        )
    out = ["  fits with one of these changes, cheapest first, each compiled", ""]
    for t in found:
        c = t.candidate
        changed = " ".join(f"{key}={value}" for key, value in changes(config, c.config).items())
        where = f"--topology {c.slice.name} " if c.slice != target else ""
        used = sum(t.plan.memory.values()) if t.plan else 0.0
        cost = f"{_chip_seconds(t):>10,.1f} chip-seconds a step"
        out.append(f"    {used / _GIB:>7.2f} GiB {cost}: {where}{changed}")
    if len(found) < wanted:
        out += [
            "",
            f"  {len(found)} of {wanted} changes found; more may be found with more time"
            " (--time-limit) or candidates",
        ]
    return "\n".join(out)


def changes_figures(config: Config, found: list[Trial]) -> list[dict[str, Any]]:
    """Changes that make a plan fit, as plain values for JSON."""
    return [
        {
            "set": changes(config, t.candidate.config),
            **_trial_figures(t),
            "chip_seconds": _chip_seconds(t),
        }
        for t in found
    ]


def _chip_seconds(t: Trial) -> float:
    return chip_seconds(t.candidate.slice, t.plan or t.candidate.expected)
