"""A search, and changes that make a plan fit, as tables for people and as plain numbers."""

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


def how(c: Candidate) -> str:
    """A candidate's mesh and execution in a line."""
    config = c.config
    mesh = mesh_name(vars(config.mesh))
    split = (
        ", positions whole between products"
        if config.mesh.tensor > 1 and not config.execution.shard_sequence
        else ""
    )
    execution, stages = config.execution, config.mesh.pipeline
    repeats = (
        f", {execution.pipeline_repeats} times round" if execution.pipeline_repeats > 1 else ""
    )
    staged = f", microbatches {execution.microbatches or stages}{repeats}" if stages > 1 else ""
    return (
        f"{mesh}, remat {execution.remat}, accumulation {config.train.accumulation}{staged}{split}"
    )


def search_table(s: Search) -> str:
    """The ranking for people."""
    out = [
        (
            f"  search {s.slice.name}: {s.walked:,} ways to run it, {s.fitting:,} with room by the"
            f" estimate, {len(s.ranking)} tried in {s.seconds:.0f} s"
        ),
        (
            "  ranked by ms, the time with all links in use and nothing overlapped; est. is the"
            " memory expected before compiling"
        ),
        "",
        f"    {'':>2} {'ms':>9} {'at best':>9} {'MFU':>6} {'GiB':>7} {'est.':>7}  how",
    ]
    for i, t in enumerate(s.ranking, 1):
        if t.plan:
            out.append(
                f"    {i:>2} {_numbers(t.plan, t.candidate)}  {how(t.candidate)}{_at_least(t.plan)}"
            )
    out += [f"    no {how(t.candidate)}: {t.reason}" for t in s.ranking if not t.plan]
    if s.waiting:
        out += [
            "",
            "  not ready at the time limit, in the order expected; more time: --time-limit",
            "",
        ]
        out += [
            f"       {c.expected.seconds.serial * 1e3:>9,.0f} expected, {c.memory / _GIB:.2f} GiB:"
            f" {how(c)}"
            for c in s.waiting
        ]
    return "\n".join(out)


def _at_least(p: Plan) -> str:
    return "; at least, as it has loops of unknown trips" if is_lower_bound(p.traffic) else ""


def _numbers(p: Plan, c: Candidate) -> str:
    used = sum(p.memory.values())
    times = f"{p.seconds.serial * 1e3:>9,.0f} {p.seconds.at_best * 1e3:>9,.0f} {mfu(p):>6.1%}"
    return f"{times} {used / _GIB:>7.2f} {c.memory / _GIB:>7.2f}"


def search_figures(s: Search) -> dict[str, Any]:
    """A Search as plain numbers; seconds and bytes."""
    return {
        "topology": s.slice.name,
        "ways": s.walked,
        "fitting_by_estimate": s.fitting,
        "seconds": s.seconds,
        "ranking": [_tried(t) for t in s.ranking],
        "not_ready": [_settings(c) for c in s.waiting],
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


def _tried(t: Trial) -> dict[str, Any]:
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
    """Changes that make a plan fit ``target``, for people. config: with its mesh in numbers."""
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
        out.append(
            f"    {used / _GIB:>7.2f} GiB {_chip_seconds(t):>10,.1f} chip-seconds a step:"
            f" {where}{changed}"
        )
    if len(found) < wanted:
        out += [
            "",
            (
                f"  {len(found)} of {wanted} looked for; more time (--time-limit) or candidates may"
                " find the others"
            ),
        ]
    return "\n".join(out)


def changes_figures(config: Config, found: list[Trial]) -> list[dict[str, Any]]:
    return [
        {"set": changes(config, t.candidate.config), **_tried(t), "chip_seconds": _chip_seconds(t)}
        for t in found
    ]


def _chip_seconds(t: Trial) -> float:
    return chip_seconds(t.candidate.slice, t.plan or t.candidate.expected)
