"""The train step of a config for a slice: its memory, its collectives, and the time that no machine
can beat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax import sharding
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.models import resolve_execution, schedule
from llm_jax.models.pipeline import Schedule
from llm_jax.plan import roofline
from llm_jax.plan.compiled import Compiled, Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.hlo import SLICES
from llm_jax.plan.memory import MARGIN, peak, unknown
from llm_jax.plan.topology import Slice, devices, stand_ins
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import batch_sharding
from llm_jax.training.flops import flops_of
from llm_jax.training.run import Parts, build, step_of
from llm_jax.training.step import abstract_batch
from llm_jax.types import ConfigError


class Plan(NamedTuple):
    """What is known of a step before it runs.

    memory: bytes per chip by purpose, at the moment when most are in use; empty where the step was
    refused (``refused`` is the reason). seconds: by data-sheet peaks, so that a real step takes
    longer than ``seconds.at_best``. analytic: nothing was compiled; memory is estimated on a TPU
    and elsewhere only what stays from step to step, traffic unknown, and the links' time that of
    the least that any sharding of this mesh must send.
    """

    slice: Slice
    mesh: dict[str, int]
    parameters: int
    tokens: int
    memory: dict[str, float]
    refused: str
    flops: dict[str, float]
    traffic: list[Traffic]
    seconds: roofline.Seconds
    compile_seconds: float
    analytic: bool = False
    temporaries: dict[str, float] = {}  # noqa: RUF012 (never changed)
    """Bytes per chip that the estimate makes of the compiler's temporaries: gradients, saved
    activations, …; {} where it knows none.
    """
    bubble: float = 0.0
    """Share of the time in which a stage of mesh.pipeline idles; the products it makes meanwhile
    are in flops["traced"].
    """
    between_slices: str = ""
    """The mesh axis that goes from slice to slice, where there are several."""


def plan_step(
    config: Config, target: Slice, *, analytic: bool = False, least_effort: bool = False
) -> Plan:
    """Traces and compiles the very step that ``llm-jax train`` would run on ``target``. The
    config's vocabulary must be known.

    analytic: without the compiler, which exists for TPU only. least_effort: compile faster, for
    tests; memory is then about right.
    Raises ConfigError for what cannot run there at all. A step that does not fit is no error: see
    ``Plan.refused``.
    """
    analytic = analytic or target.chip.platform != "tpu"
    began, chip = time.perf_counter(), target.chip
    config, parts, traced = _traced(
        config, target, stand_ins(target) if analytic else devices(target)
    )
    flops = matmul_flops(traced.jaxpr)
    out = (
        None
        if analytic
        else compile_traced(traced, parts.mesh, target.slices, least_effort=least_effort)
    )
    held = parts.abstract
    state = {
        "parameters": roofline.bytes_per_device(held.params),
        "optimizer state": roofline.bytes_per_device(held.opt_state),
    }
    estimated = {
        name: size * chip.devices for name, size in _estimated(config, parts, chip.platform).items()
    }
    if out is None:
        memory = {**{name: size * chip.devices for name, size in state.items()}, **estimated}
        refused = _too_big(memory, chip.hbm)
    else:
        memory = memory_by_purpose(out.memory, state, "batch", chip) if out.memory else {}
        refused = out.refused
    tokens, per_token = config.data.batch_size * config.data.seq_length, flops_of(config)
    return Plan(
        slice=target,
        mesh=dict(parts.mesh.shape),
        parameters=_count(parts),
        tokens=tokens,
        memory={} if refused else memory,
        refused=refused,
        flops={
            "model, causal": per_token.causal * tokens,
            "model, full": per_token.full * tokens,
            "traced": flops,
        },
        traffic=out.traffic if out else [],
        seconds=_seconds(config, parts, target, flops, out),
        compile_seconds=time.perf_counter() - began,
        analytic=analytic,
        temporaries={name: size for name, size in estimated.items() if name != "batch"},
        bubble=_schedule(config, parts).bubble,
        between_slices=sharding.between_slices(parts.mesh.shape, target.slices),
    )


def peak_memory(config: Config, target: Slice) -> int:
    """Bytes of a device at the moment when most are in use, by the compiler at full effort.
    ConfigError where it refuses the step.
    """
    _, parts, traced = _traced(config, target, devices(target))
    out = compile_traced(traced, parts.mesh, target.slices)
    if out.memory is None:
        raise ConfigError(f"the step does not fit {target.name}: {out.refused}")
    return out.memory.peak_memory_in_bytes


def _traced(config: Config, target: Slice, on: Sequence) -> tuple[Config, Parts, Any]:
    config = for_platform(config, target)
    parts = build(config, on)
    step = step_of(parts)
    with jax.set_mesh(parts.mesh):
        return (
            config,
            parts,
            step.trace(
                parts.abstract,
                abstract_batch(config, batch_sharding(parts.mesh, config.data.batch_size)),
            ),
        )


def _estimated(config: Config, parts: Parts, platform: str) -> dict[str, float]:
    """What comes on top of the state, where ``memory`` knows how the compiler does it."""
    layers = resolve_execution(
        config.execution, config.model, platform, parts.mesh.shape["context"]
    ).layers
    if platform != "tpu" or layers != "scan" or unknown(config):
        return {}
    return {
        name: size
        for name, size in peak(config, parts.mesh.shape).items()
        if name not in ("parameters", "optimizer state")
    }


def _schedule(config: Config, parts: Parts) -> Schedule:
    return schedule(
        config.model,
        config.execution,
        parts.mesh.shape,
        config.data.batch_size // config.train.accumulation,
    )


def for_platform(config: Config, target: Slice) -> Config:
    """``config`` as it can be traced here: cuDNN's kernel cannot, and ``dot_product`` has the same
    products, of whole rows.
    """
    gpu = target.chip.platform == "gpu"
    if (
        gpu
        and resolve_execution(config.execution, config.model, "gpu", config.mesh.context).attention
        == "cudnn"
    ):
        return override(
            config,
            {"execution.attention": "dot_product"},
            "llm-jax plan, for a GPU that is not here",
        )
    return config


def _too_big(memory: dict[str, float], hbm: float) -> str:
    state, used = memory["parameters"] + memory["optimizer state"], sum(memory.values())
    if state > hbm:
        return (
            f"parameters and optimizer state alone are {state / 2**30:.1f} GiB of each chip's"
            f" {hbm / 2**30:.0f}"
        )
    return (
        f"estimated at {used / 2**30:.1f} GiB of each chip's {hbm / 2**30:.0f}"
        if used > MARGIN * hbm
        else ""
    )


def _count(parts: Parts) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(parts.abstract.params))


def _seconds(
    config: Config, parts: Parts, target: Slice, flops: float, out: Compiled | None
) -> roofline.Seconds:
    """Lower bounds per step, and of the links also the time if one link at a time were used."""
    chip, platform = target.chip, target.chip.platform
    width = jnp.dtype(
        resolve_execution(config.execution, config.model, platform).compute_dtype
    ).itemsize
    state = roofline.bytes_per_device((parts.abstract.params, parts.abstract.opt_state))
    pieces = config.train.accumulation * _schedule(config, parts).microbatches
    memory = roofline.hbm_seconds(chip, state, width * _worked_with(parts), pieces)
    if out is None:
        copies = roofline.batch_shares(
            batch_sharding(parts.mesh, config.data.batch_size), config.data.batch_size
        )
        links = roofline.least_link_seconds(target, width * _count(parts), copies)
    else:
        links = roofline.link_seconds(
            chip, sum(t.bytes for t in out.traffic if SLICES not in t.axes)
        )
    return roofline.Seconds(
        {"compute": flops / target.chips / (chip.tflops * 1e12), **links, "memory": memory}
    )


def _worked_with(parts: Parts) -> float:
    """Parameters that a device works with, gathered where they are only kept apart: those of its
    stage, experts and tensor shares.
    """

    def one(a: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> float:
        ways = (
            parts.mesh.shape[m]
            for axis in axes
            if axis not in ("embed", "expert_embed")
            for m in sharding.RULES[axis] or ()
        )
        return math.prod(a.shape) / math.prod(ways)

    return sum(jax.tree.leaves(jax.tree.map(one, parts.abstract.params, parts.model.axes)))
