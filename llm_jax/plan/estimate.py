"""Estimates of a step's memory, traffic and time without compiling it, to prune a search.

Only the FLOPs come from a trace.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax import models
from llm_jax.config import Config, ExecutionConfig, MeshConfig, ModelConfig
from llm_jax.objectives.token_loss import token_loss
from llm_jax.params.select import ALL, select, split
from llm_jax.plan import memory, roofline
from llm_jax.plan.shares import PerDevice, shares, ways_of
from llm_jax.plan.topology import Slice, StandIn
from llm_jax.plan.trace import matmul_flops, used
from llm_jax.sharding import make_mesh
from llm_jax.training.step import gradient_of, pick_loss_chunk
from llm_jax.types import Batch, Tokens


class Estimate(NamedTuple):
    """The estimate of a step.

    Attributes:
        memory: bytes per chip by purpose.
        flops: of all chips.
        sent: bytes that each device sends.
        seconds: lower bounds of the time, as in ``Plan``.
    """

    memory: dict[str, float]
    flops: float
    sent: float
    seconds: roofline.Seconds


def estimate(config: Config, target: Slice) -> Estimate:
    """Estimates a config on a TPU slice. Its vocabulary and mesh must be known.

    Raises:
        ConfigError: a dimension does not divide over the mesh.
    """
    chip = target.chip
    mesh = dataclasses.asdict(config.mesh)
    d = shares(config, mesh)
    peak = {name: size * chip.devices for name, size in memory.peak(config, mesh).items()}
    flops = _step_flops(config, d, chip.kind)
    sent = bytes_sent(config, mesh, d, target)
    state = (peak["parameters"] + peak["optimizer state"]) / chip.devices
    worked_layers = d.plan.steps * d.parameters.worked_layers / d.plan.repeats
    worked = worked_layers + d.parameters.worked_rest
    seconds = roofline.Seconds(
        {
            "compute": flops / target.chips / (chip.tflops * 1e12),
            **roofline.link_seconds(chip, sent),
            "memory": roofline.hbm_seconds(chip, state, 2 * worked, d.pieces),
        }
    )
    return Estimate(peak, flops, sent, seconds)


def _step_flops(config: Config, d: PerDevice, kind: str) -> float:
    """FLOPs of a step on all chips of the ``kind``, with those of the pipeline's bubble."""
    execution = dataclasses.replace(
        config.execution,
        layers="scan",
        shard_sequence=True,
        loss_chunk=0,
        microbatches=0,
        pipeline_repeats=1,
    )
    if config.mesh.context > 1 and execution.context == "ring":
        execution = dataclasses.replace(execution, attention="blockwise")
    outside = 8.0 * config.model.vocab_size * config.model.embed_dim
    traced = flops_per_token(
        config.model,
        execution,
        config.data.seq_length,
        kind,
        trainable=config.train.trainable,
    )
    layers = traced - outside
    # In the bubble, stages compute products whose results are not used.
    per_token = layers / (1 - d.plan.bubble) + outside
    return per_token * config.data.batch_size * config.data.seq_length


@cache
def flops_per_token(
    m: ModelConfig,
    execution: ExecutionConfig,
    seq_length: int,
    kind: str,
    *,
    trainable: tuple[str, ...] = ALL,
) -> float:
    """FLOPs per token of the matrix products of loss and gradient, from a trace on one TPU.

    Args:
        m: the model.
        execution: how it runs.
        seq_length: tokens of the row that is traced.
        kind: jax's name of the TPU.
        trainable: which parameters have a gradient (``train.trainable``).
    """
    model = models.build(m, execution, "tpu")

    def row(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, seq_length), dtype)

    batch: Any = Batch(
        inputs=Tokens(row(jnp.int32), row(jnp.int32), row(jnp.int32)),
        targets=row(jnp.int32),
        loss_mask=row(jnp.bool_),
    )
    loss = token_loss(model, pick_loss_chunk(seq_length, m.vocab_size))
    params = jax.eval_shape(model.init, jax.random.key(0))
    trained, frozen = split(params, select(trainable, model.specs, "train.trainable"))
    device: Any = StandIn(0, "tpu", kind, (0, 0, 0), 0)
    with jax.set_mesh(make_mesh(MeshConfig(), [device])):
        traced = jax.make_jaxpr(gradient_of(loss))(trained, frozen, batch, None)
    return matmul_flops(used(traced) if frozen else traced) / seq_length


def bytes_sent(config: Config, mesh: dict[str, int], d: PerDevice, target: Slice) -> float:
    """Bytes that a device sends in a step, by the ring algorithms.

    Counted are weights, gradients, activations between the layers' products, activations from
    stage to stage, and tokens to experts.
    """
    m = config.model
    tensor = mesh["tensor"]
    layers = d.plan.steps * d.plan.layers
    activations = 2 * m.embed_dim * d.tokens
    recomputed = {"none": 0, "dots": 0.5}.get(config.execution.remat, 0.75)
    between = layers * (8 + 4 * recomputed) * activations * share(tensor)
    # The hidden states' gradient of every vocabulary chunk is summed where the chunk is split.
    rows = int(d.rows / d.plan.stages * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(rows, m.vocab_size, tensor)
    loss = math.ceil(m.vocab_size / chunk) * 2 * 2 * m.embed_dim * d.outer * share(tensor)
    ring = layers * (mesh["context"] - 1) * 2 * d.tokens * d.keys * m.head_dim * (2 + 2 + 4)
    travelling = experts_sent(config, mesh, d) + stages_sent(config, d)
    return weights_sent(config, mesh, d, target) + d.pieces * (between + loss + ring + travelling)


def share(n: int) -> float:
    """The share of an array split over n devices that a device does not hold."""
    return (n - 1) / n


def weights_sent(config: Config, mesh: dict[str, int], d: PerDevice, target: Slice) -> float:
    """Bytes of weights and their gradients that a device sends in a step.

    The weights of layers are sent in each step of a pipeline.
    """
    p = d.parameters
    steps = d.plan.steps
    # On a three-dimensional torus the compiler writes a gather over all chips as a sum of zeros
    # and one part, which sends it twice. Experts' gathers are explicit in the program; the
    # scattered sum of their gradients is written in the same way.
    everywhere = target.chips * target.chip.devices if target.chip.torus == 3 else 0
    twice = 2 if ways_of("embed", mesh) == everywhere else 1
    twice_summed = 2 if ways_of("expert_embed", mesh) == everywhere else 1
    # A ring passes on everything but the part that a device keeps.
    experts = d.experts * d.plan.layers * steps * share(ways_of("expert_embed", mesh))
    gathered_layers = (p.worked_layers - p.layers) / d.plan.repeats * steps
    others = gathered_layers - experts + p.worked_rest - p.rest
    # In bfloat16, forward and backward; experts that the forward pass leaves whole once.
    expert_passes = 1 if config.execution.remat == "none" else 2
    gathers = 2 * 2 * others * twice + expert_passes * 2 * experts
    # Gradients are scattered in float32, those of experts in bfloat16, and summed over replicas.
    # Frozen parameters have none.
    trained = p.trained_layers + p.trained_rest
    replicas = 2 * 4 * trained * share(mesh["data"])
    scattered = 4 * others + 2 * experts * twice_summed
    scatters = scattered * trained / (p.layers + p.rest) + replicas
    return d.pieces * (gathers + scatters)


def experts_sent(config: Config, mesh: dict[str, int], d: PerDevice) -> float:
    """Bytes that a device sends in an accumulation step to carry tokens to experts and back.

    Experts are taken to be used evenly. The exchange runs forward, backward, and again where the
    experts are recomputed.
    """
    m = config.model
    exchanges = 4 if config.execution.remat == "none" else 6
    rows = d.tokens * m.experts.per_token if m.experts else 0.0
    return d.plan.steps * d.plan.layers * exchanges * 2 * m.embed_dim * rows * share(mesh["expert"])


def stages_sent(config: Config, d: PerDevice) -> float:
    """Bytes that a device sends in an accumulation step for the pipeline.

    These are activations from stage to stage, forward and backward; rows before and after the
    stages, where rows are split over them too; and with several repeats the layers, which move to
    the stage whose turn it is.
    """
    plan = d.plan
    width = 2 * config.model.embed_dim
    if plan.stages == 1:
        return 0.0
    handed_on = 2 * plan.steps * width * d.between
    split = 4 * plan.microbatches * width * d.between * share(plan.stages)
    moved = (2 + 4) * d.parameters.layers * share(plan.stages) if plan.repeats > 1 else 0.0
    return handed_on + split + moved
