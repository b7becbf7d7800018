"""What is expected of a step without compiling or, but for its FLOPs, tracing it: memory, bytes sent, bounds. To prune a search by."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax import models
from llm_jax.config import Config, ExecutionConfig, MeshConfig, ModelConfig
from llm_jax.plan import memory, roofline
from llm_jax.plan.topology import Slice, StandIn
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import make_mesh
from llm_jax.training.step import make_loss, pick_loss_chunk
from llm_jax.types import Batch


class Estimate(NamedTuple):
    """memory: bytes of a chip by purpose · flops: of all chips · sent: bytes that each device sends · seconds: as in ``Plan``."""

    memory: dict[str, float]
    flops: float
    sent: float
    seconds: roofline.Seconds


def estimate(config: Config, target: Slice) -> Estimate:
    """Of a config whose vocabulary and mesh are known, on a TPU slice. ConfigError where a dimension does not divide over the mesh."""
    chip, mesh = target.chip, dataclasses.asdict(config.mesh)
    local = memory.local(config, mesh)
    peak = {name: size * chip.devices for name, size in memory.peak(config, mesh).items()}
    execution = dataclasses.replace(config.execution, layers="scan", shard_sequence=True, loss_chunk=0)
    if mesh["context"] > 1 and execution.context == "ring":
        execution = dataclasses.replace(execution, attention="blockwise")
    flops = flops_per_token(config.model, execution, config.data.seq_length, chip.kind)
    flops *= config.data.batch_size * config.data.seq_length
    sent = bytes_sent(config, mesh, local, target)
    state = (peak["parameters"] + peak["optimizer state"]) / chip.devices
    gathered = (local.layers + local.rest) * memory.ways_of("embed", mesh)
    seconds = roofline.Seconds({
        "compute": flops / target.chips / (chip.tflops * 1e12),
        **roofline.link_seconds(chip, sent),
        "memory": roofline.hbm_seconds(chip, state, 2 * gathered, local.pieces),
    })
    return Estimate(peak, flops, sent, seconds)


@cache
def flops_per_token(m: ModelConfig, execution: ExecutionConfig, seq_length: int, kind: str) -> float:
    """FLOPs of the matrix products of loss and gradient for a token, counted in their trace on one TPU of the ``kind``."""
    model = models.build(m, execution, "tpu")
    row = lambda dtype: jax.ShapeDtypeStruct((1, seq_length), dtype)  # noqa: E731
    batch = Batch(row(jnp.int32), row(jnp.int32), row(jnp.bool_), row(jnp.int32), row(jnp.int32))
    loss = make_loss(model, pick_loss_chunk(seq_length, m.vocab_size), 0.0)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with jax.set_mesh(make_mesh(MeshConfig(), [StandIn(0, "tpu", kind, (0, 0, 0), 0)])):  # type: ignore[list-item]
        traced = jax.make_jaxpr(jax.grad(lambda p, b: loss(p, b, None).total))(params, batch)
    return matmul_flops(traced) / seq_length


def bytes_sent(config: Config, mesh: dict[str, int], d: memory.Local, target: Slice) -> float:
    """Bytes that a device sends in a step, by the ring algorithms: weights, gradients, activations between the layers' products."""
    m, c = config.model, mesh["context"]
    over, t = memory.ways_of("embed", mesh), mesh["tensor"]
    share = lambda n: (n - 1) / n  # noqa: E731
    # On a torus of three dimensions the compiler writes a gather over all chips as a sum of zeros and one part, which sends it twice.
    twice = 2 if target.chip.torus == 3 and over == target.chips * target.chip.devices else 1
    weights = (d.layers + d.rest) * over
    # In bfloat16 forward and backward; gradients in float32, scattered, and summed over the copies of what each has.
    gathers = 2 * 2 * weights * share(over) * twice
    scatters = 4 * weights * share(over) + 2 * 4 * weights / over * share(mesh["data"])
    activations = 2 * m.embed_dim * d.tokens
    again = {"none": 0, "dots": 0.5}.get(config.execution.remat, 0.75)
    between = m.num_layers * (8 + 4 * again) * activations * share(t)
    # Every chunk of a vocabulary that is split has its gradient of the hidden states summed.
    rows = int(d.rows * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(rows, m.vocab_size, t)
    loss = math.ceil(m.vocab_size / chunk) * 2 * activations * share(t)
    # Keys and values once round the ring forward, again backward, and their gradients (float32) with them.
    ring = m.num_layers * (c - 1) * 2 * d.tokens * d.keys * m.head_size * (2 + 2 + 4)
    return d.pieces * (gathers + scatters + between + loss + ring)
