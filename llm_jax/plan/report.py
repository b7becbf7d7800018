"""Plans as tables for people and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm_jax.plan import cost
from llm_jax.plan.compiled import Traffic, is_lower_bound
from llm_jax.plan.cost import Cost
from llm_jax.plan.decode import DecodePlan, Phase
from llm_jax.plan.hlo import SLICES
from llm_jax.plan.roofline import Seconds
from llm_jax.plan.step import Plan

_GIB = 2**30
_NOT_COMPILED = "activations and real traffic are unknown"


def figures(p: Plan, money: Cost | None = None) -> dict[str, Any]:
    """A Plan as plain values: bytes, FLOPs and seconds per step.

    Memory is per chip and traffic per device. ``fits`` is None where only a compiler could tell.
    """
    between = {"axis": p.between_slices, "bytes": _between_slices(p)} if p.between_slices else None
    return {
        "topology": p.slice.name,
        "chips": p.slice.chips,
        "mesh": p.mesh,
        "parameters": p.parameters,
        "tokens_per_step": p.tokens,
        "analytic": p.analytic,
        "fits": _fits(p.refused, p.analytic),
        "refused": p.refused,
        "memory_bytes_per_chip": p.memory,
        "temporaries_estimated_bytes_per_chip": p.temporaries,
        "hbm_bytes": p.slice.chip.hbm,
        "flops_per_step": p.flops,
        "pipeline_bubble_share": p.bubble,
        "traffic": [t._asdict() for t in p.traffic],
        "traffic_is_lower_bound": is_lower_bound(p.traffic),
        "between_slices": between,
        "seconds": _seconds_figures(p.seconds),
        "bound": p.seconds.bound,
        "mfu_causal_at_best": mfu(p),
        "compile_seconds": p.compile_seconds,
        "chip_sources": dict(p.slice.chip.sources),
        "cost": cost.figures(money) if money else None,
    }


def _fits(refused: str, analytic: bool) -> bool | None:
    if refused:
        return False
    return None if analytic else True


def _seconds_figures(seconds: Seconds) -> dict[str, float]:
    return {**seconds, "at best": seconds.at_best, "at worst": seconds.at_worst}


def mfu(p: Plan) -> float:
    """Model FLOPs utilization (causal) at the best time."""
    return p.flops["model, causal"] / (
        p.seconds.at_best * p.slice.chips * p.slice.chip.tflops * 1e12
    )


def mesh_name(mesh: Mapping[str, int]) -> str:
    """The axes larger than 1, such as ``fsdp=32 x tensor=2``."""
    return " x ".join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "of one device"


def heading(p: Plan | DecodePlan, what: str) -> str:
    """The first line of a table: the slice, its mesh, the model's size, and ``what``."""
    return (
        f"  {p.slice.name}: {p.slice.chips:,} chips; mesh {mesh_name(p.mesh)}; {p.parameters:,}"
        f" parameters; {what}"
    )


def memory_lines(memory: dict[str, float], hbm: float, verdict: str) -> list[str]:
    return [
        f"  memory per chip, of {hbm / _GIB:.0f} GiB",
        *(f"    {name:<20}{size / _GIB:>10.2f} GiB" for name, size in memory.items()),
        f"    {'together':<20}{sum(memory.values()) / _GIB:>10.2f} GiB: {verdict}",
    ]


def _temporaries(p: Plan) -> list[str]:
    if p.analytic or not p.temporaries:
        return []
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in p.temporaries.items())
    return [f"    temporaries by the estimate: {parts} GiB"]


def traffic_lines(traffic: list[Traffic]) -> list[str]:
    """Bytes sent by kind and axes, and their sum.

    The sum is a lower bound where some collectives run an unknown number of times.
    """
    out = []
    for t in traffic:
        over = " x ".join(t.axes)
        if t.count:
            out.append(f"    {t.kind:<20}{t.bytes / 1e9:>10.2f} GB in {t.count:,} over {over}")
        if t.trip_count:
            out.append(
                f"    {t.kind:<20}{t.trip_bytes / 1e9:>10.2f} GB in {t.trip_count:,} x unknown"
                f" trips over {over}"
            )
    remark = ""
    if is_lower_bound(traffic):
        remark = (
            " at least; loops and branches of unknown trips are not in it, nor in the times below"
        )
    total = sum(t.bytes for t in traffic)
    return [*out, f"    {'together':<20}{total / 1e9:>10.2f} GB{remark}"]


def _between_slices(p: Plan) -> float:
    """Bytes that each device sends to other slices."""
    return sum((t.bytes for t in p.traffic if SLICES in t.axes), 0.0)


def _between_slices_lines(p: Plan) -> list[str]:
    if not p.between_slices:
        return []
    return [
        f"    {'between slices':<20}{_between_slices(p) / 1e9:>10.2f} GB of it, of"
        f" mesh.{p.between_slices}; its time is not in what follows"
    ]


def time_lines(seconds: Seconds) -> list[str]:
    bound = seconds.bound.removesuffix(" at best")
    return [
        *(f"    {name:<20}{s * 1e3:>10.1f} ms" for name, s in seconds.items()),
        f"    {'at best':<20}{seconds.at_best * 1e3:>10.1f} ms, bound by {bound}",
        f"    {'nothing overlapped':<20}{seconds.at_worst * 1e3:>10.1f} ms",
    ]


def table(p: Plan, money: Cost | None = None) -> str:
    """A Plan as a table."""
    chip = p.slice.chip
    out = [heading(p, f"{p.tokens:,} tokens a step"), *_analytic_lines(p), ""]
    if p.refused:
        return "\n".join([*out, f"  does not fit: {p.refused}"])
    out += [*memory_lines(p.memory, chip.hbm, _verdict(p)), *_temporaries(p), ""]
    out += [*_flops_lines(p), ""]
    if not p.analytic:
        out += ["  each device sends, a step", *traffic_lines(p.traffic)]
        out += [*_between_slices_lines(p), ""]
    speed = p.tokens / p.seconds.at_best / p.slice.chips
    out += [
        f"  time of a step, by {'measured' if chip.measured else 'data-sheet'} peaks",
        *time_lines(p.seconds),
        f"    {'tokens/s/chip':<20}{speed:>10,.0f} at best; MFU {mfu(p):.1%} causal at best",
        "",
    ]
    if money:
        out += [*cost.lines(money), ""]
    return "\n".join([*out, _closing_line(p)])


def _memory_is_estimated(p: Plan) -> bool:
    return p.analytic and "working space" in p.memory


def _verdict(p: Plan) -> str:
    if _memory_is_estimated(p):
        return "estimated"
    return "activations come on top" if p.analytic else "fits"


def _flops_lines(p: Plan) -> list[str]:
    out = ["  matrix products a step and chip"]
    for name, flops in p.flops.items():
        out.append(f"    {name:<20}{flops / p.slice.chips / 1e12:>10.1f} TFLOP")
    recomputed = p.flops["traced"] / p.flops["model, full"] - 1
    what = "recomputed, and made in the bubble" if p.bubble else "recomputed"
    out.append(f"    {'above the model':<20}{recomputed:>10.1%} ({what})")
    if p.bubble:
        out.append(f"    {'pipeline bubble':<20}{p.bubble:>10.1%} of the steps of each stage")
    return out


def _analytic_lines(p: Plan) -> list[str]:
    """What an analytic plan does not know."""
    unknown = _NOT_COMPILED
    if _memory_is_estimated(p):
        unknown = (
            "memory is an estimate, within a tenth of the compiler's, and real traffic is unknown"
        )
    links = (
        "links carry the gradients and the changed weights once, the least that any sharding sends"
    )
    return _not_compiled(p, unknown, links)


def _not_compiled(p: Plan | DecodePlan, unknown: str, links: str) -> list[str]:
    if not p.analytic:
        return []
    reasons = {
        "tpu": "",
        "gpu": "there is no compiler for GPUs here; ",
        "cpu": "plan compiles for TPU only; ",
    }
    why = reasons[p.slice.chip.platform]
    return [f"  analytic: {why}nothing was compiled, so {unknown};", f"  {links}"]


def _closing_line(p: Plan | DecodePlan) -> str:
    how = "not compiled" if p.analytic else f"compiled in {p.compile_seconds:.0f} s"
    return f"  {how}; chip figures: {p.slice.chip.sources['links']}"


def decode_figures(p: DecodePlan, money: Cost | None = None) -> dict[str, Any]:
    """A DecodePlan as plain values, in the units of ``figures``, for prefill and one step."""
    return {
        "topology": p.slice.name,
        "chips": p.slice.chips,
        "mesh": p.mesh,
        "parameters": p.parameters,
        "batch": p.batch,
        "context": p.context,
        "prompt": p.prompt,
        "analytic": p.analytic,
        "hbm_bytes": p.slice.chip.hbm,
        "prefill": _phase_figures(p.prefill, p.analytic),
        "decode": _phase_figures(p.step, p.analytic),
        "cache": dataclasses.asdict(p.cache),
        "draft": _draft_figures(p),
        "time_to_first_token_at_best": p.prefill.seconds.at_best,
        "tokens_per_second_per_chip_at_best": p.tokens_per_second_per_chip,
        "hbm_roofline_share": {"at best": p.hbm_share[0], "at worst": p.hbm_share[1]},
        "compile_seconds": p.compile_seconds,
        "chip_sources": dict(p.slice.chip.sources),
        "cost": cost.figures(money) if money else None,
    }


def _phase_figures(phase: Phase, analytic: bool) -> dict[str, Any]:
    return {
        "fits": _fits(phase.refused, analytic),
        "refused": phase.refused,
        "memory_bytes_per_chip": phase.memory,
        "flops": phase.flops,
        "traffic": [t._asdict() for t in phase.traffic],
        "traffic_is_lower_bound": is_lower_bound(phase.traffic),
        "seconds": _seconds_figures(phase.seconds),
        "bound": phase.seconds.bound,
        "least_bytes_read": phase.least,
        "moved_bytes": phase.moved.known if phase.moved else None,
        "moved_bytes_in_branches": phase.moved.of_a_trip if phase.moved else None,
    }


def _draft_figures(p: DecodePlan) -> dict[str, Any] | None:
    draft = p.draft
    if draft is None:
        return None
    return {
        "parameters": draft.parameters,
        "tokens": draft.tokens,
        "step": _phase_figures(draft.step, p.analytic),
        "verify": _phase_figures(draft.verify, p.analytic),
        "round_at_best": draft.seconds,
    }


def decode_table(p: DecodePlan, money: Cost | None = None) -> str:
    """A DecodePlan as a table."""
    out = [
        heading(p, f"{p.batch:,} rows of {p.context:,} tokens, {_cache_name(p)} cache"),
        *_not_compiled(p, _NOT_COMPILED, "links are not counted"),
        "",
        f"  prefill of {p.prompt:,} tokens in each of {p.batch:,} rows",
        "",
        *_phase_lines(p, p.prefill, _prefill_line(p)),
        f"  one token of each of {p.batch:,} rows, {p.context:,} in the cache",
        "",
        *_phase_lines(p, p.step, _step_lines(p)),
        *_draft_lines(p),
    ]
    if money:
        out += [*cost.lines(money, "tokens written, without prefill"), ""]
    return "\n".join([*out, _closing_line(p)])


def _prefill_line(p: DecodePlan) -> str:
    milliseconds = p.prefill.seconds.at_best * 1e3
    return f"    {'to the first token':<20}{milliseconds:>10.1f} ms at best"


def _cache_name(p: DecodePlan) -> str:
    """Such as ``dense``, or ``int8 paged (64 tokens a page)``."""
    name: str = p.cache.layout
    if p.cache.layout == "paged":
        name = f"paged ({p.cache.page} tokens a page)"
    return name if p.cache.dtype == "compute" else f"int8 {name}"


def _draft_lines(p: DecodePlan) -> list[str]:
    draft = p.draft
    if draft is None:
        return []
    milliseconds = draft.seconds * 1e3
    share = p.batch / draft.seconds / p.slice.chips if draft.seconds else 0.0
    most = share * (draft.tokens + 1)
    last = (
        f"    {'a round':<20}{milliseconds:>10.1f} ms at best, {draft.tokens} steps of the draft"
        " model and this\n"
        f"    {'tokens/s/chip':<20}{share:>10,.0f} if no draft holds, {most:,.0f} if all do"
    )
    return [
        f"  one token of each row by the draft model of {draft.parameters:,} parameters",
        "",
        *_phase_lines(p, draft.step, _moved_line(draft.step)),
        f"  {draft.tokens + 1} tokens of each row verified by the model",
        "",
        *_phase_lines(p, draft.verify, f"{_moved_line(draft.verify)}\n{last}"),
    ]


def _moved_line(phase: Phase) -> str:
    """What a step moves in memory beside the least that it must."""
    least = phase.least / 1e9
    if phase.moved is None:
        return f"    {'memory, at least':<20}{least:>10.2f} GB read by each device"
    moved = phase.moved.known / 1e9
    branches = phase.moved.of_a_trip / 1e9
    return (
        f"    {'memory moved':<20}{moved:>10.2f} GB of each device, {phase.moved_share:.2f}x the"
        f" {least:.2f} GB of parameters and cache; up to {branches:.2f} GB more in branches"
    )


def _step_lines(p: DecodePlan) -> str:
    best, worst = p.hbm_share
    return (
        f"{_moved_line(p.step)}\n"
        f"    {'tokens/s/chip':<20}{p.tokens_per_second_per_chip:>10,.0f} at best\n"
        f"    {'of HBM roofline':<20}{best:>10.0%} at best, {worst:.0%} with nothing overlapped"
    )


def _phase_lines(p: DecodePlan, phase: Phase, last: str) -> list[str]:
    if phase.refused:
        return [f"  does not fit: {phase.refused}", ""]
    chip = p.slice.chip
    verdict = "activations come on top" if p.analytic else "fits"
    out = [*memory_lines(phase.memory, chip.hbm, verdict), ""]
    if not p.analytic:
        out += ["  each device sends", *traffic_lines(phase.traffic), ""]
    return [
        *out,
        f"  time, by {'measured' if chip.measured else 'data-sheet'} peaks",
        *time_lines(phase.seconds),
        last,
        "",
    ]
