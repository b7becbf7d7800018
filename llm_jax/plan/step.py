"""The train step of a config compiled for a slice: its memory, its collectives, and the time that no machine can beat."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.config import Config
from llm_jax.plan.chips import Chip
from llm_jax.plan.hlo import collectives, summed
from llm_jax.plan.topology import Slice, devices
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import batch_sharding
from llm_jax.training.flops import train_flops
from llm_jax.training.run import Parts, build
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, Params


class Traffic(NamedTuple):
    """Collectives of one kind over the same mesh axes in a step: how many, and the bytes that each device sends in them."""

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: float


class Plan(NamedTuple):
    """What is known of a step before it runs.

    memory: bytes per chip by purpose, at the moment when most are in use; empty where the compiler refused (``refused`` is its
    reason). seconds: at best and, were nothing overlapped, at worst, with what each is made of. Peaks are data-sheet peaks: a real
    step takes longer than ``at_best``.
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

    @property
    def at_best(self) -> float:
        return max(self.seconds["compute"], self.seconds["links at best"], self.seconds["memory"])

    @property
    def at_worst(self) -> float:
        return self.seconds["compute"] + self.seconds["links at worst"] + self.seconds["memory"]

    @property
    def bound(self) -> str:
        return max(("compute", "links at best", "memory"), key=self.seconds.__getitem__)


def plan_step(config: Config, target: Slice) -> Plan:
    """Traces and compiles the very step that ``llm-jax train`` would run on ``target``. The config's vocabulary must be known.

    Raises ConfigError for what cannot run there at all. A step that does not fit is no error: see ``Plan.refused``.
    """
    parts = build(config, devices(target))
    step = jit_train_step(make_train_step(parts.loss, parts.optimizer, config), parts.model, parts.optimizer, parts.mesh)
    began, chip, traffic, memory, refused = time.perf_counter(), target.chip, [], {}, ""
    with jax.set_mesh(parts.mesh):
        traced = step.trace(parts.abstract, _batch(config, parts))
        flops = matmul_flops(traced.jaxpr)
        try:
            compiled = traced.lower().compile()
            found = summed(collectives(compiled.as_text(), parts.mesh.shape))
            traffic = [Traffic(kind, axes, count, size) for (kind, axes), (count, size) in found.items()]
            memory = _memory(compiled, parts, chip)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = str(error).split("\n")[0]
    tokens, per_token = config.data.batch_size * config.data.seq_length, train_flops(config.model, config.data.seq_length)
    return Plan(
        slice=target,
        mesh=dict(parts.mesh.shape),
        parameters=sum(math.prod(a.shape) for a in jax.tree.leaves(parts.abstract.params)),
        tokens=tokens,
        memory=memory,
        refused=refused,
        flops={"model, causal": per_token.causal * tokens, "model, full": per_token.full * tokens, "traced": flops},
        traffic=sorted(traffic, key=lambda t: -t.bytes),
        seconds=_seconds(config, parts, chip, target.chips, flops, sum(t.bytes for t in traffic)),
        compile_seconds=time.perf_counter() - began,
    )


def _batch(config: Config, parts: Parts) -> Batch:
    where = batch_sharding(parts.mesh, config.data.batch_size)
    rows = lambda dtype: jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_length), dtype, sharding=where)  # noqa: E731
    return Batch(rows(jnp.int32), rows(jnp.int32), rows(jnp.bool_), rows(jnp.int32), rows(jnp.int32))


def _per_device(tree: Params) -> float:
    return float(sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)))


def _memory(compiled: Any, parts: Parts, chip: Chip) -> dict[str, float]:
    m = compiled.memory_analysis()
    params, optimizer = _per_device(parts.abstract.params), _per_device(parts.abstract.opt_state)
    rest = m.argument_size_in_bytes - params - optimizer
    sizes = {
        "parameters": params,
        "optimizer state": optimizer,
        "batch": rest,
        # Not temp_size_in_bytes: that counts buffers that share their place twice, and comes out above what the compiler itself accepts.
        "temporaries": m.peak_memory_in_bytes - m.argument_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return {name: size * chip.devices for name, size in sizes.items()}


def _seconds(config: Config, parts: Parts, chip: Chip, chips: int, flops: float, sent: float) -> dict[str, float]:
    """Lower bounds per step, and of the links also the time if one link at a time were used.

    memory: the state read and written once, and the weights in the compute type read once forward and once backward per piece.
    """
    state = _per_device((parts.abstract.params, parts.abstract.opt_state)) * chip.devices
    weights = sum(math.prod(a.shape) for a in jax.tree.leaves(parts.abstract.params)) / parts.mesh.shape["tensor"]
    read = 2 * state + 2 * config.train.accumulation * 2 * weights * chip.devices
    return {
        "compute": flops / chips / (chip.tflops * 1e12),
        "links at best": sent * chip.devices / (2 * chip.torus * chip.link_rate),
        "links at worst": sent * chip.devices / chip.link_rate,
        "memory": read / chip.hbm_rate,
    }
