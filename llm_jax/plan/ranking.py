"""A search, and changes that make a plan fit, as tables for people and as plain numbers."""

from __future__ import annotations

from typing import Any

from llm_jax.config import Config
from llm_jax.plan import roofline
from llm_jax.plan.candidates import Candidate, changes
from llm_jax.plan.changes import chip_seconds
from llm_jax.plan.report import mfu
from llm_jax.plan.search import Search, Tried, rank

_GIB = 2**30
_HEAD = f"    {'':>2} {'ms':>9} {'at best':>9} {'MFU':>6} {'GiB':>7} {'est.':>7}  how"


def how(c: Candidate) -> str:
    """A candidate's mesh and execution in a line."""
    config = c.config
    mesh = " x ".join(f"{axis}={n}" for axis, n in vars(config.mesh).items() if n > 1) or "one device"
    split = ", positions whole between products" if config.mesh.tensor > 1 and not config.execution.shard_sequence else ""
    return f"{mesh}, remat {config.execution.remat}, accumulation {config.train.accumulation}{split}"


def search_table(s: Search) -> str:
    """The ranking for people."""
    compiled = [t for t in s.ranking if t.plan]
    out = [
        f"  search {s.slice.name}: {s.walked:,} ways to run it, {s.fitting:,} with room by the estimate, {len(s.ranking)} tried in "
        f"{s.seconds:.0f} s",
        "  ranked by the time with all links in use and nothing overlapped (ms); est. is the memory expected before compiling",
        "",
        _HEAD,
    ]
    for i, t in enumerate(compiled, 1):
        p, used = t.plan, sum(t.plan.memory.values())  # type: ignore[union-attr]
        numbers = f"{rank(p) * 1e3:>9,.0f} {p.at_best * 1e3:>9,.0f} {mfu(p):>6.1%} {used / _GIB:>7.2f} {t.candidate.memory / _GIB:>7.2f}"  # type: ignore[union-attr]
        out.append(f"    {i:>2} {numbers}  {how(t.candidate)}")
    out += [f"    no {how(t.candidate)}: {t.reason}" for t in s.ranking if not t.plan]
    if s.waiting:
        out += ["", "  not ready at the time limit, in the order expected; more time: --time-limit", ""]
        out += [f"       {rank(c.expected) * 1e3:>9,.0f} expected, {c.memory / _GIB:.2f} GiB: {how(c)}" for c in s.waiting]
    return "\n".join(out)


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
        "expected_memory_bytes_per_chip": c.memory,
        "expected_seconds": c.expected.seconds,
    }


def _tried(t: Tried) -> dict[str, Any]:
    out = {"topology": t.candidate.slice.name, **_settings(t.candidate), "refused": t.reason}
    if t.plan:
        out |= {
            "memory_bytes_per_chip": sum(t.plan.memory.values()), "seconds_ranked_by": roofline.serial(t.plan.seconds),
            "seconds_at_best": t.plan.at_best, "mfu_causal_at_best": mfu(t.plan),
            "flops_traced_over_model": t.plan.flops["traced"] / t.plan.flops["model, full"],
            "bytes_sent_per_device": sum(x.bytes for x in t.plan.traffic), "compile_seconds": t.plan.compile_seconds,
        }
    return out


def changes_table(config: Config, found: list[Tried], wanted: int) -> str:
    """Changes that make a plan fit, for people. config: with its mesh in numbers."""
    if not found:
        return "  no change of mesh, remat, accumulation, loss chunk or slice that was tried makes it fit"
    out = ["  fits with one of these changes, cheapest first, each compiled", ""]
    for t in found:
        p = t.plan
        assert p
        changed = " ".join(f"{key}={value}" for key, value in changes(config, t.candidate.config).items())
        where = f"--topology {t.candidate.slice.name} " if p.slice.name != t.candidate.slice.name else ""
        out.append(
            f"    {sum(p.memory.values()) / _GIB:>7.2f} GiB {chip_seconds(t):>9,.1f} chip-seconds a step on {p.slice.name}: {where}{changed}"
        )
    if len(found) < wanted:
        out += ["", f"  {len(found)} of {wanted} looked for; more time (--time-limit) or candidates may find the others"]
    return "\n".join(out)


def changes_figures(config: Config, found: list[Tried]) -> list[dict[str, Any]]:
    return [{"set": changes(config, t.candidate.config), **_tried(t), "chip_seconds": chip_seconds(t)} for t in found]
