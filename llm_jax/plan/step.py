"""Plans the train step of a config on a slice: its memory, its collectives, its least time."""

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
from llm_jax.plan.chips import Chip
from llm_jax.plan.compiled import Compiled, Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.hlo import SLICES
from llm_jax.plan.memory import MARGIN, peak, unknown
from llm_jax.plan.topology import Slice, devices, stand_ins
from llm_jax.plan.trace import matmul_flops, used
from llm_jax.sharding import batch_sharding
from llm_jax.training.build import Parts, build, step_of
from llm_jax.training.flops import flops_of
from llm_jax.training.step import abstract_batch
from llm_jax.types import ConfigError, Params, ParamSpec


class Plan(NamedTuple):
    """What is known of a step before it runs.

    Attributes:
        slice: the topology.
        mesh: the size of every axis.
        parameters: how many the model has.
        tokens: of one step.
        memory: bytes per chip by purpose when the most are in use; empty where the step was
            refused. In an analytic plan estimated on a TPU, and elsewhere only what stays from
            step to step.
        refused: why the step does not fit, or empty.
        flops: of the matrix products of all chips.
        traffic: the compiled collectives; empty in an analytic plan.
        seconds: lower bounds by data-sheet peaks: a real step takes longer than
            ``seconds.at_best``. In an analytic plan the links' time is the least that any sharding
            on this mesh must take.
        compile_seconds: time to trace and compile.
        analytic: nothing was compiled.
        temporaries: bytes per chip by the estimate of the compiler's temporaries (gradients, saved
            activations, ...); empty where there is no estimate.
        bubble: share of the time in which a stage of mesh.pipeline is idle; the products that it
            computes meanwhile are in ``flops["traced"]``.
        between_slices: the mesh axis that spans several slices, or empty.
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
    bubble: float = 0.0
    between_slices: str = ""


def plan_step(
    config: Config, target: Slice, *, analytic: bool = False, least_effort: bool = False
) -> Plan:
    """Traces and compiles the step that ``llm-jax train`` would run on ``target``.

    Args:
        config: the config; its vocabulary must be known.
        target: the slice.
        analytic: do not compile. The compiler exists for TPU only; elsewhere a plan is analytic.
        least_effort: compile faster, with a less exact memory figure, for tests.

    Returns:
        The plan, also of a step that does not fit (``Plan.refused``).

    Raises:
        ConfigError: the config cannot run on the slice at all.
    """
    began = time.perf_counter()
    analytic = analytic or target.chip.platform != "tpu"
    on = stand_ins(target) if analytic else devices(target)
    config, parts, traced = _traced(config, target, on)
    flops = matmul_flops(used(traced.jaxpr) if parts.abstract.frozen else traced.jaxpr)
    out = None
    if not analytic:
        out = compile_traced(traced, parts.mesh, target.slices, least_effort=least_effort)
    estimated = _estimated(config, parts, target.chip)
    memory, refused = _memory(out, parts, estimated, target.chip)
    tokens = config.data.batch_size * config.data.seq_length
    per_token = flops_of(config)
    return Plan(
        slice=target,
        mesh=dict(parts.mesh.shape),
        parameters=_count(parts.abstract.params),
        tokens=tokens,
        memory=memory,
        refused=refused,
        flops={
            "model, causal": per_token.causal * tokens,
            "model, full": per_token.full * tokens,
            "traced": flops,
        },
        traffic=[] if out is None else out.traffic,
        seconds=_seconds(config, parts, target, flops, out),
        compile_seconds=time.perf_counter() - began,
        analytic=analytic,
        temporaries={name: size for name, size in estimated.items() if name != "batch"},
        bubble=_schedule(config, parts).bubble,
        between_slices=sharding.between_slices(parts.mesh.shape, target.slices),
    )


def peak_memory(config: Config, target: Slice) -> int:
    """Bytes of a device when the most are in use, by the compiler at full effort.

    Raises:
        ConfigError: the step does not fit.
    """
    _, parts, traced = _traced(config, target, devices(target))
    out = compile_traced(traced, parts.mesh, target.slices)
    if out.memory is None:
        raise ConfigError(f"the step does not fit {target.name}: {out.refused}")
    return out.memory.peak_memory_in_bytes


def _traced(config: Config, target: Slice, on: Sequence[Any]) -> tuple[Config, Parts, Any]:
    """The config that is traced for ``target``, its parts, and the traced step."""
    config = for_platform(config, target)
    parts = build(config, on)
    step: Any = step_of(parts)
    batch = abstract_batch(config, batch_sharding(parts.mesh, config.data.batch_size))
    with jax.set_mesh(parts.mesh):
        return config, parts, step.trace(parts.abstract, batch)


def _estimated(config: Config, parts: Parts, chip: Chip) -> dict[str, float]:
    """Bytes of a chip beside the state by purpose; empty where ``memory`` has no estimate."""
    layers = resolve_execution(
        config.execution, config.model, chip.platform, parts.mesh.shape["context"]
    ).layers
    if chip.platform != "tpu" or layers != "scan" or unknown(config):
        return {}
    return {
        name: size * chip.devices
        for name, size in peak(config, parts.mesh.shape).items()
        if name not in ("parameters", "optimizer state")
    }


def _memory(
    out: Compiled | None, parts: Parts, estimated: dict[str, float], chip: Chip
) -> tuple[dict[str, float], str]:
    """Bytes of a chip by purpose, empty where the step does not fit; and the reason, or empty.

    Args:
        out: the compiler's answer; None in an analytic plan.
        parts: of the run.
        estimated: as ``_estimated`` returns it; for an analytic plan.
        chip: the chip.
    """
    state = {
        "parameters": roofline.bytes_per_device(parts.abstract.params),
        "optimizer state": roofline.bytes_per_device(parts.abstract.opt_state),
    }
    if out is not None:
        memory = memory_by_purpose(out.memory, state, "batch", chip) if out.memory else {}
        return ({} if out.refused else memory), out.refused
    memory = {**{name: size * chip.devices for name, size in state.items()}, **estimated}
    refused = _too_big(memory, chip.hbm)
    return ({} if refused else memory), refused


def _schedule(config: Config, parts: Parts) -> Schedule:
    return schedule(
        config.model,
        config.execution,
        parts.mesh.shape,
        config.data.batch_size // config.train.accumulation,
    )


def for_platform(config: Config, target: Slice) -> Config:
    """``config`` with an attention backend that can be traced on this machine.

    cuDNN's kernel cannot; ``dot_product`` has the same products, of whole rows.
    """
    if target.chip.platform != "gpu":
        return config
    execution = resolve_execution(config.execution, config.model, "gpu", config.mesh.context)
    if execution.attention != "cudnn":
        return config
    return override(
        config,
        {"execution.attention": "dot_product"},
        "llm-jax plan, for a GPU that is not here",
    )


def _too_big(memory: dict[str, float], hbm: float) -> str:
    """Why an estimate does not fit a chip, or an empty string."""
    state = memory["parameters"] + memory["optimizer state"]
    used = sum(memory.values())
    if state > hbm:
        return (
            f"parameters and optimizer state alone are {state / 2**30:.1f} GiB of each chip's"
            f" {hbm / 2**30:.0f}"
        )
    if used > MARGIN * hbm:
        return f"estimated at {used / 2**30:.1f} GiB of each chip's {hbm / 2**30:.0f}"
    return ""


def _count(params: Params) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(params))


def _seconds(
    config: Config, parts: Parts, target: Slice, flops: float, out: Compiled | None
) -> roofline.Seconds:
    """Lower bounds per step, by compute, links and memory."""
    chip = target.chip
    execution = resolve_execution(config.execution, config.model, chip.platform)
    width = jnp.dtype(execution.compute_dtype).itemsize
    state = roofline.bytes_per_device((parts.abstract.params, parts.abstract.opt_state))
    pieces = config.train.accumulation * _schedule(config, parts).microbatches
    memory = roofline.hbm_seconds(chip, state, width * _worked_with(parts), pieces)
    if out is None:
        copies = roofline.batch_shares(
            batch_sharding(parts.mesh, config.data.batch_size), config.data.batch_size
        )
        # At least the gradients are summed over the copies.
        trained = _count(parts.abstract.trainable)
        links = roofline.least_link_seconds(target, width * trained, copies)
    else:
        links = roofline.link_seconds(
            chip, sum(t.bytes for t in out.traffic if SLICES not in t.axes)
        )
    return roofline.Seconds(
        {"compute": flops / target.chips / (chip.tflops * 1e12), **links, "memory": memory}
    )


def _worked_with(parts: Parts) -> float:
    """How many parameters a device computes with, after those stored in shards are gathered."""

    def one(a: jax.ShapeDtypeStruct, spec: ParamSpec) -> float:
        ways = (
            parts.mesh.shape[m]
            for axis in spec.axes
            if axis is not None and axis not in ("embed", "expert_embed")
            for m in sharding.RULES[axis] or ()
        )
        return math.prod(a.shape) / math.prod(ways)

    return sum(jax.tree.leaves(jax.tree.map(one, parts.abstract.params, parts.model.specs)))
