"""What is expected of a step without compiling or, but for its FLOPs, tracing it: memory, bytes
sent, bounds. To prune a search by.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax import models
from llm_jax.config import Config, ExecutionConfig, MeshConfig, ModelConfig
from llm_jax.objectives.token_loss import token_loss
from llm_jax.plan import memory, roofline
from llm_jax.plan.shares import PerDevice, shares, ways_of
from llm_jax.plan.topology import Slice, StandIn
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import make_mesh
from llm_jax.training.step import pick_loss_chunk
from llm_jax.types import Batch


class Estimate(NamedTuple):
    """memory: bytes of a chip by purpose · flops: of all chips · sent: bytes that each device sends
    · seconds: as in ``Plan``.
    """

    memory: dict[str, float]
    flops: float
    sent: float
    seconds: roofline.Seconds


def estimate(config: Config, target: Slice) -> Estimate:
    """Of a config whose vocabulary and mesh are known, on a TPU slice. ConfigError where a
    dimension does not divide over the mesh.
    """
    chip, mesh = target.chip, dataclasses.asdict(config.mesh)
    d = shares(config, mesh)
    peak = {name: size * chip.devices for name, size in memory.peak(config, mesh).items()}
    execution = dataclasses.replace(
        config.execution,
        layers="scan",
        shard_sequence=True,
        loss_chunk=0,
        microbatches=0,
        pipeline_repeats=1,
    )
    if mesh["context"] > 1 and execution.context == "ring":
        execution = dataclasses.replace(execution, attention="blockwise")
    outside = 8.0 * config.model.vocab_size * config.model.embed_dim
    layers = flops_per_token(config.model, execution, config.data.seq_length, chip.kind) - outside
    # In the bubble, stages make products that nobody reads.
    flops = (
        (layers / (1 - d.plan.bubble) + outside) * config.data.batch_size * config.data.seq_length
    )
    sent = bytes_sent(config, mesh, d, target)
    state = (peak["parameters"] + peak["optimizer state"]) / chip.devices
    worked = d.plan.steps * d.parameters.worked_layers / d.plan.repeats + d.parameters.worked_rest
    seconds = roofline.Seconds(
        {
            "compute": flops / target.chips / (chip.tflops * 1e12),
            **roofline.link_seconds(chip, sent),
            "memory": roofline.hbm_seconds(chip, state, 2 * worked, d.pieces),
        }
    )
    return Estimate(peak, flops, sent, seconds)


@cache
def flops_per_token(
    m: ModelConfig, execution: ExecutionConfig, seq_length: int, kind: str
) -> float:
    """FLOPs of the matrix products of loss and gradient for a token, counted in their trace on one
    TPU of the ``kind``.
    """
    model = models.build(m, execution, "tpu")

    def row(dtype):
        return jax.ShapeDtypeStruct((1, seq_length), dtype)

    batch = Batch(row(jnp.int32), row(jnp.int32), row(jnp.bool_), row(jnp.int32), row(jnp.int32))
    loss = token_loss(model, pick_loss_chunk(seq_length, m.vocab_size))
    params = jax.eval_shape(model.init, jax.random.key(0))
    with jax.set_mesh(make_mesh(MeshConfig(), [StandIn(0, "tpu", kind, (0, 0, 0), 0)])):  # type: ignore[list-item]
        traced = jax.make_jaxpr(jax.grad(lambda p, b: loss(p, {}, b, None).total))(params, batch)
    return matmul_flops(traced) / seq_length


def bytes_sent(config: Config, mesh: dict[str, int], d: PerDevice, target: Slice) -> float:
    """Bytes that a device sends in a step, by the ring algorithms: weights, gradients, activations
    between the layers' products, from stage to stage, and to experts.
    """
    m, c = config.model, mesh["context"]
    t, layers = mesh["tensor"], d.plan.steps * d.plan.layers
    activations = 2 * m.embed_dim * d.tokens
    recomputed = {"none": 0, "dots": 0.5}.get(config.execution.remat, 0.75)
    between = layers * (8 + 4 * recomputed) * activations * share(t)
    # Every chunk of a vocabulary that is split has its gradient of the hidden states summed.
    rows = int(d.rows / d.plan.stages * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(rows, m.vocab_size, t)
    loss = math.ceil(m.vocab_size / chunk) * 2 * 2 * m.embed_dim * d.outer * share(t)
    ring = layers * (c - 1) * 2 * d.tokens * d.keys * m.head_size * (2 + 2 + 4)
    travelling = experts_sent(config, mesh, d) + stages_sent(config, d)
    return weights_sent(config, mesh, d, target) + d.pieces * (between + loss + ring + travelling)


def share(n: int) -> float:
    """What a device lacks of something split over n."""
    return (n - 1) / n


def weights_sent(config: Config, mesh: dict[str, int], d: PerDevice, target: Slice) -> float:
    """Bytes of weights and their gradients that a device sends in a step; those of layers in each
    step of a pipeline.
    """
    p, steps = d.parameters, d.plan.steps
    # On a torus of three dimensions the compiler writes a gather over all chips as a sum of zeros
    # and one part, which sends it twice; and of experts, which are gathered as the program says,
    # the scattered sum of their gradients so.
    everywhere = target.chips * target.chip.devices if target.chip.torus == 3 else 0
    twice, twice_summed = (
        2 if ways_of(axis, mesh) == everywhere else 1 for axis in ("embed", "expert_embed")
    )
    # A ring hands round all but what a device keeps.
    experts = d.experts * d.plan.layers * steps * share(ways_of("expert_embed", mesh))
    others = (
        (p.worked_layers - p.layers) / d.plan.repeats * steps - experts + p.worked_rest - p.rest
    )
    # In bfloat16 forward and backward, but for experts that the forward pass leaves whole.
    gathers = 2 * 2 * others * twice + (1 if config.execution.remat == "none" else 2) * 2 * experts
    # Gradients in float32, those of experts in bfloat16, scattered, and summed over the copies of
    # what each has.
    scatters = (
        4 * others + 2 * experts * twice_summed + 2 * 4 * (p.layers + p.rest) * share(mesh["data"])
    )
    return d.pieces * (gathers + scatters)


def experts_sent(config: Config, mesh: dict[str, int], d: PerDevice) -> float:
    """Bytes that a device sends in an accumulation step for its tokens to go to their experts and
    back, evenly used: forward, backward, and again where the experts are recomputed.
    """
    m, exchanges = config.model, 4 if config.execution.remat == "none" else 6
    rows = d.tokens * m.experts_per_token if m.num_experts else 0.0
    return d.plan.steps * d.plan.layers * exchanges * 2 * m.embed_dim * rows * share(mesh["expert"])


def stages_sent(config: Config, d: PerDevice) -> float:
    """Bytes that a device sends in an accumulation step from stage to stage, forward and backward;
    and before and after the stages, where rows are split over them too; and of several repeats,
    layers to the stage that has their turn.
    """
    plan, width = d.plan, 2 * config.model.embed_dim
    if plan.stages == 1:
        return 0.0
    handed_on = 2 * plan.steps * width * d.between
    split = 4 * plan.microbatches * width * d.between * share(plan.stages)
    moved = (2 + 4) * d.parameters.layers * share(plan.stages) if plan.repeats > 1 else 0.0
    return handed_on + split + moved
