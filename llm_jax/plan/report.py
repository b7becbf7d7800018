"""Plans as tables for people and as plain numbers."""

from __future__ import annotations

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
    """A Plan as plain numbers: bytes, FLOPs and seconds per step; memory and traffic per chip and
    device.

    fits: None where only a compiler could tell.
    """
    return {
        "topology": p.slice.name,
        "chips": p.slice.chips,
        "mesh": p.mesh,
        "parameters": p.parameters,
        "tokens_per_step": p.tokens,
        "analytic": p.analytic,
        "fits": False if p.refused else None if p.analytic else True,
        "refused": p.refused,
        "memory_bytes_per_chip": p.memory,
        "temporaries_estimated_bytes_per_chip": p.temporaries,
        "hbm_bytes": p.slice.chip.hbm,
        "flops_per_step": p.flops,
        "pipeline_bubble_share": p.bubble,
        "traffic": [t._asdict() for t in p.traffic],
        "traffic_is_lower_bound": is_lower_bound(p.traffic),
        "between_slices": (
            {"axis": p.between_slices, "bytes": _between(p)} if p.between_slices else None
        ),
        "seconds": {**p.seconds, "at best": p.seconds.at_best, "at worst": p.seconds.at_worst},
        "bound": p.seconds.bound,
        "mfu_causal_at_best": mfu(p),
        "compile_seconds": p.compile_seconds,
        "chip_sources": dict(p.slice.chip.sources),
        "cost": cost.figures(money) if money else None,
    }


def mfu(p: Plan) -> float:
    """Model FLOPs (causal) of the peak, at best."""
    return p.flops["model, causal"] / (
        p.seconds.at_best * p.slice.chips * p.slice.chip.tflops * 1e12
    )


def mesh_name(mesh: Mapping[str, int]) -> str:
    """The axes that are split, such as ``fsdp=32 x tensor=2``."""
    return " x ".join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "of one device"


def heading(p: Plan | DecodePlan, what: str) -> str:
    """First line of a table: the slice, its mesh, the model's size, and ``what``."""
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
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in p.temporaries.items())
    return [f"    temporaries by the estimate: {parts} GiB"] if parts and not p.analytic else []


def traffic_lines(traffic: list[Traffic]) -> list[str]:
    """What is sent, by kind and axes, and its sum: a lower bound where it is unknown how often
    something runs.
    """
    kinds = []
    for t in traffic:
        over = " x ".join(t.axes)
        if t.count:
            kinds.append(f"    {t.kind:<20}{t.bytes / 1e9:>10.2f} GB in {t.count:,} over {over}")
        if t.trip_count:
            kinds.append(
                f"    {t.kind:<20}{t.trip_bytes / 1e9:>10.2f} GB in {t.trip_count:,} x unknown"
                f" trips over {over}"
            )
    more = (
        " at least; loops and branches of unknown trips are not in it, nor in the times below"
        if is_lower_bound(traffic)
        else ""
    )
    return [*kinds, f"    {'together':<20}{sum(t.bytes for t in traffic) / 1e9:>10.2f} GB{more}"]


def _between(p: Plan) -> float:
    """Bytes that each device sends to other slices."""
    return sum((t.bytes for t in p.traffic if SLICES in t.axes), 0.0)


def _slow(p: Plan) -> list[str]:
    what = f"GB of it, of mesh.{p.between_slices}; its time is not in what follows"
    return (
        [f"    {'between slices':<20}{_between(p) / 1e9:>10.2f} {what}"] if p.between_slices else []
    )


def time_lines(seconds: Seconds) -> list[str]:
    bound = seconds.bound.removesuffix(" at best")
    return [
        *(f"    {name:<20}{s * 1e3:>10.1f} ms" for name, s in seconds.items()),
        f"    {'at best':<20}{seconds.at_best * 1e3:>10.1f} ms, bound by {bound}",
        f"    {'nothing overlapped':<20}{seconds.at_worst * 1e3:>10.1f} ms",
    ]


def table(p: Plan, money: Cost | None = None) -> str:
    """A Plan for people."""
    chips, chip = p.slice.chips, p.slice.chip
    least = (
        "links carry the gradients and the changed weights once, the least that any sharding sends"
    )
    estimated = p.analytic and "working space" in p.memory
    unknown = (
        "memory is an estimate, within a tenth of the compiler's, and real traffic is unknown"
        if estimated
        else _NOT_COMPILED
    )
    out = [
        heading(p, f"{p.tokens:,} tokens a step"),
        *_unknown(p.analytic, chip.platform, unknown, least),
        "",
    ]
    if p.refused:
        return "\n".join([*out, f"  does not fit: {p.refused}"])
    verdict = "estimated" if estimated else "activations come on top" if p.analytic else "fits"
    out += [
        *memory_lines(p.memory, chip.hbm, verdict),
        *_temporaries(p),
        "",
        "  matrix products a step and chip",
    ]
    out += [f"    {name:<20}{n / chips / 1e12:>10.1f} TFLOP" for name, n in p.flops.items()]
    recomputed = p.flops["traced"] / p.flops["model, full"] - 1
    out += [
        f"    {'above the model':<20}{recomputed:>10.1%}"
        f" (recomputed{', and made in the bubble' if p.bubble else ''})"
    ]
    out += (
        [f"    {'pipeline bubble':<20}{p.bubble:>10.1%} of the steps of each stage", ""]
        if p.bubble
        else [""]
    )
    out += (
        []
        if p.analytic
        else ["  each device sends, a step", *traffic_lines(p.traffic), *_slow(p), ""]
    )
    out += [
        f"  time of a step, by {'measured' if chip.measured else 'data-sheet'} peaks",
        *time_lines(p.seconds),
    ]
    out += [
        (
            f"    {'tokens/s/chip':<20}{p.tokens / p.seconds.at_best / chips:>10,.0f} at best; MFU"
            f" {mfu(p):.1%} causal at best"
        ),
        "",
    ]
    out += [*cost.lines(money), ""] if money else []
    return "\n".join([*out, f"  {_how(p)}; chip figures: {chip.sources['links']}"])


def _unknown(analytic: bool, platform: str, unknown: str, links: str) -> list[str]:
    if not analytic:
        return []
    why = {
        "tpu": "",
        "gpu": "there is no compiler for GPUs here; ",
        "cpu": "plan compiles for TPU only; ",
    }[platform]
    return [f"  analytic: {why}nothing was compiled, so {unknown};", f"  {links}"]


def _how(p: Plan | DecodePlan) -> str:
    return "not compiled" if p.analytic else f"compiled in {p.compile_seconds:.0f} s"


def decode_figures(p: DecodePlan, money: Cost | None = None) -> dict[str, Any]:
    """A DecodePlan as plain numbers, in the units of ``figures``; of prefill and of one step."""

    def phase(x: Phase) -> dict[str, Any]:
        return {
            "fits": False if x.refused else None if p.analytic else True,
            "refused": x.refused,
            "memory_bytes_per_chip": x.memory,
            "flops": x.flops,
            "traffic": [t._asdict() for t in x.traffic],
            "traffic_is_lower_bound": is_lower_bound(x.traffic),
            "seconds": {**x.seconds, "at best": x.seconds.at_best, "at worst": x.seconds.at_worst},
            "bound": x.seconds.bound,
        }

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
        "prefill": phase(p.prefill),
        "decode": phase(p.step),
        "time_to_first_token_at_best": p.prefill.seconds.at_best,
        "tokens_per_second_per_chip_at_best": p.tokens_per_second_per_chip,
        "hbm_roofline_share": {"at best": p.hbm_share[0], "at worst": p.hbm_share[1]},
        "compile_seconds": p.compile_seconds,
        "chip_sources": dict(p.slice.chip.sources),
        "cost": cost.figures(money) if money else None,
    }


def decode_table(p: DecodePlan, money: Cost | None = None) -> str:
    """A DecodePlan for people."""
    chip, step = p.slice.chip, p.step
    ends = (
        (
            f"prefill of {p.prompt:,} tokens in each of {p.batch:,} rows",
            p.prefill,
            f"    {'to the first token':<20}{p.prefill.seconds.at_best * 1e3:>10.1f} ms at best",
        ),
        (
            f"one token of each of {p.batch:,} rows, {p.context:,} in the cache",
            step,
            (
                f"    {'tokens/s/chip':<20}{p.tokens_per_second_per_chip:>10,.0f} at best\n   "
                f" {'of HBM roofline':<20}{p.hbm_share[0]:>10.0%} at best, {p.hbm_share[1]:.0%}"
                " with nothing overlapped"
            ),
        ),
    )
    unknown = _unknown(p.analytic, chip.platform, _NOT_COMPILED, "links are not counted")
    out = [heading(p, f"{p.batch:,} rows of {p.context:,} tokens"), *unknown, ""]
    for title, phase, last in ends:
        out += [f"  {title}", ""]
        if phase.refused:
            out += [f"  does not fit: {phase.refused}", ""]
            continue
        out += [
            *memory_lines(
                phase.memory, chip.hbm, "activations come on top" if p.analytic else "fits"
            ),
            "",
        ]
        out += [] if p.analytic else ["  each device sends", *traffic_lines(phase.traffic), ""]
        out += [
            f"  time, by {'measured' if chip.measured else 'data-sheet'} peaks",
            *time_lines(phase.seconds),
            last,
            "",
        ]
    out += [*cost.lines(money, "tokens written, without prefill"), ""] if money else []
    return "\n".join([*out, f"  {_how(p)}; chip figures: {chip.sources['links']}"])
