"""The train step of a config for a slice: its memory, its collectives, and the time that no machine can beat."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax import sharding
from llm_jax.config import Config
from llm_jax.models import resolve_execution, schedule
from llm_jax.models.pipeline import Schedule
from llm_jax.overrides import override
from llm_jax.plan import roofline
from llm_jax.plan.compiled import Compiled, Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.hlo import SLICES
from llm_jax.plan.topology import Slice, devices, stand_ins
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import batch_sharding
from llm_jax.training.flops import train_flops
from llm_jax.training.run import Parts, build
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch


class Plan(NamedTuple):
    """What is known of a step before it runs.

    memory: bytes per chip by purpose, at the moment when most are in use; empty where the step was refused (``refused`` is the
    reason). seconds: at best and, were nothing overlapped, at worst, with what each is made of. Peaks are data-sheet peaks: a real
    step takes longer than ``at_best``. analytic: nothing was compiled; memory is only what stays from step to step, traffic
    unknown, and the links' time that of the least that any sharding of this mesh must send.
    """

    slice: Slice
    mesh: dict[str, int]
    parameters: int
    tokens: int
    memory: dict[str, float]
    refused: str
    flops: dict[str, float]
    traffic: list[Traffic]
    seconds: dict[str, float]
    compile_seconds: float
    analytic: bool = False
    bubble: float = 0.0
    """Share of the time in which a stage of mesh.pipeline idles; the products it makes meanwhile are in flops["traced"]."""
    between_slices: str = ""
    """The mesh axis that goes from slice to slice, where there are several."""

    @property
    def at_best(self) -> float:
        return roofline.at_best(self.seconds)

    @property
    def at_worst(self) -> float:
        return roofline.at_worst(self.seconds)

    @property
    def bound(self) -> str:
        return roofline.bound(self.seconds)


def plan_step(config: Config, target: Slice, *, analytic: bool = False, least_effort: bool = False) -> Plan:
    """Traces and compiles the very step that ``llm-jax train`` would run on ``target``. The config's vocabulary must be known.

    analytic: without the compiler, which exists for TPU only. least_effort: compile faster, for tests; memory is then about right.
    Raises ConfigError for what cannot run there at all. A step that does not fit is no error: see ``Plan.refused``.
    """
    config = for_platform(config, target)
    analytic = analytic or target.chip.platform != "tpu"
    parts = build(config, stand_ins(target) if analytic else devices(target))  # type: ignore[arg-type]
    step = jit_train_step(make_train_step(parts.loss, parts.optimizer, config), parts.model, parts.optimizer, parts.mesh)
    began, chip = time.perf_counter(), target.chip
    with jax.set_mesh(parts.mesh):
        traced = step.trace(parts.abstract, _batch(config, parts))
        flops = matmul_flops(traced.jaxpr)
        inner = sharding.within_slice(parts.mesh.shape, target.slices)
        out = None if analytic else compile_traced(traced, inner, least_effort=least_effort)
    held = parts.abstract
    state = {"parameters": roofline.bytes_per_device(held.params), "optimizer state": roofline.bytes_per_device(held.opt_state)}
    if out is None:
        memory = {name: size * chip.devices for name, size in state.items()}
        refused = _too_big(memory, chip.hbm)
    else:
        memory = memory_by_purpose(out.memory, state, "batch", chip) if out.memory else {}
        refused = out.refused
    tokens, per_token = config.data.batch_size * config.data.seq_length, train_flops(config.model, config.data.seq_length)
    return Plan(
        slice=target,
        mesh=dict(parts.mesh.shape),
        parameters=_count(parts),
        tokens=tokens,
        memory={} if refused else memory,
        refused=refused,
        flops={"model, causal": per_token.causal * tokens, "model, full": per_token.full * tokens, "traced": flops},
        traffic=out.traffic if out else [],
        seconds=_seconds(config, parts, target, flops, out),
        compile_seconds=time.perf_counter() - began,
        analytic=analytic,
        bubble=_schedule(config, parts).bubble,
        between_slices=sharding.between_slices(parts.mesh.shape, target.slices),
    )


def _schedule(config: Config, parts: Parts) -> Schedule:
    return schedule(config.model, config.execution, parts.mesh.shape, config.data.batch_size // config.train.accumulation)


def for_platform(config: Config, target: Slice) -> Config:
    """``config`` as it can be traced here: cuDNN's kernel cannot, and the reference has the same products."""
    if target.chip.platform == "gpu" and config.execution.attention in ("auto", "cudnn"):
        return override(config, {"execution.attention": "xla"}, "llm-jax plan, for a GPU that is not here")
    return config


def _too_big(memory: dict[str, float], hbm: float) -> str:
    used = sum(memory.values())
    return f"parameters and optimizer state alone are {used / 2**30:.1f} GiB of each chip's {hbm / 2**30:.0f}" if used > hbm else ""


def _count(parts: Parts) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(parts.abstract.params))


def _batch(config: Config, parts: Parts) -> Batch:
    where = batch_sharding(parts.mesh, config.data.batch_size)
    rows = lambda dtype: jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_length), dtype, sharding=where)  # noqa: E731
    return Batch(rows(jnp.int32), rows(jnp.int32), rows(jnp.bool_), rows(jnp.int32), rows(jnp.int32))


def _seconds(config: Config, parts: Parts, target: Slice, flops: float, out: Compiled | None) -> dict[str, float]:
    """Lower bounds per step, and of the links also the time if one link at a time were used.

    memory: the state read and written once, and the weights in the compute type read once forward and once backward per piece.
    """
    chip, platform = target.chip, target.chip.platform
    width = jnp.dtype(resolve_execution(config.execution, config.model, platform).compute_dtype).itemsize
    state = roofline.bytes_per_device((parts.abstract.params, parts.abstract.opt_state)) * chip.devices
    weights = _count(parts) / parts.mesh.shape["tensor"] / parts.mesh.shape["pipeline"]
    pieces = config.train.accumulation * _schedule(config, parts).microbatches
    read = 2 * state + 2 * pieces * width * weights * chip.devices
    if out is None:
        copies = roofline.batch_shares(batch_sharding(parts.mesh, config.data.batch_size), config.data.batch_size)
        links = roofline.least_link_seconds(target, width * _count(parts), copies)
    else:
        links = roofline.link_seconds(chip, sum(t.bytes for t in out.traffic if SLICES not in t.axes))
    return {"compute": flops / target.chips / (chip.tflops * 1e12), **links, "memory": read / chip.hbm_rate}
