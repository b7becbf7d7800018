"""``llm-jax plan``: a config's train step compiled for a TPU slice that is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def plan(
    config: str = "configs/lm_1b.py", topology: str = "v5e:4x4", set: tuple[str, ...] = (), vocab_size: int = 32000, out: str = ""
) -> str:
    """Compile the train step of a config for a TPU slice, on this machine: memory per chip, collectives, time at best.

    Args:
        config: a configs/*.py file or a saved config.json.
        topology: chip and shape of the slice, such as v5e:4x4, v6e:16x16 or v5p:4x4x4.
        set: changed settings, as section.key=value.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
        out: also write the figures to this JSON file.
    """
    # The host stays a CPU; the compiler for TPU is asked for by name.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from llm_jax.overrides import load_config, parse_assignments
    from llm_jax.plan.step import plan_step
    from llm_jax.plan.topology import parse_topology
    from llm_jax.training.run import with_vocabulary

    target = parse_topology(topology)
    loaded = parse_assignments(load_config(config), set)
    if loaded.model.vocab_size == 0:
        loaded = with_vocabulary(loaded, vocab_size)
    found = plan_step(loaded, target)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(figures(found), indent=1) + "\n")
    return f"plan {' '.join([config, *set])}\n{table(found)}"


def figures(p: Any) -> dict[str, Any]:
    """A Plan as plain numbers: bytes, FLOPs and seconds per step; memory and traffic per chip and device."""
    return {
        "topology": p.slice.name,
        "chips": p.slice.chips,
        "mesh": p.mesh,
        "parameters": p.parameters,
        "tokens_per_step": p.tokens,
        "fits": not p.refused,
        "refused": p.refused,
        "memory_bytes_per_chip": p.memory,
        "hbm_bytes": p.slice.chip.hbm,
        "flops_per_step": p.flops,
        "traffic": [t._asdict() for t in p.traffic],
        "seconds": {**p.seconds, "at best": p.at_best, "at worst": p.at_worst},
        "bound": p.bound,
        "mfu_causal_at_best": _mfu(p),
        "compile_seconds": p.compile_seconds,
    }


def _mfu(p: Any) -> float:
    return p.flops["model, causal"] / (p.at_best * p.slice.chips * p.slice.chip.tflops * 1e12)


def table(p: Any) -> str:
    """A Plan for people."""
    chips, chip, gib = p.slice.chips, p.slice.chip, 2**30
    mesh = " x ".join(f"{axis}={n}" for axis, n in p.mesh.items())
    lines = [f"  {p.slice.name}: {chips} chips; mesh {mesh}; {p.parameters:,} parameters; {p.tokens:,} tokens a step", ""]
    if p.refused:
        return "\n".join([*lines, f"  does not fit: {p.refused}"])
    used = sum(p.memory.values())
    lines += [f"  memory per chip, of {chip.hbm / gib:.0f} GiB"]
    lines += [f"    {name:<20}{size / gib:>10.2f} GiB" for name, size in p.memory.items()]
    lines += [f"    {'together':<20}{used / gib:>10.2f} GiB: fits", "", "  matrix products a step and chip"]
    lines += [f"    {name:<20}{n / chips / 1e12:>10.1f} TFLOP" for name, n in p.flops.items()]
    recomputed = p.flops["traced"] / p.flops["model, full"] - 1
    lines += [f"    {'above the model':<20}{recomputed:>10.1%} (recomputed)", "", "  each device sends, a step"]
    lines += [f"    {t.kind:<20}{t.bytes / 1e9:>10.2f} GB in {t.count:,} over {' x '.join(t.axes)}" for t in p.traffic]
    lines += ["", "  time of a step, by data-sheet peaks"]
    lines += [f"    {name:<20}{s * 1e3:>10.1f} ms" for name, s in p.seconds.items()]
    lines += [
        f"    {'at best':<20}{p.at_best * 1e3:>10.1f} ms, bound by {p.bound.removesuffix(' at best')}",
        f"    {'nothing overlapped':<20}{p.at_worst * 1e3:>10.1f} ms",
        f"    {'tokens/s/chip':<20}{p.tokens / p.at_best / chips:>10,.0f} at best; MFU {_mfu(p):.1%} causal at best",
        "",
        f"  compiled in {p.compile_seconds:.0f} s; chip figures: {chip.source}",
    ]
    return "\n".join(lines)
