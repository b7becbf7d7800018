"""A stack of layers over mesh.pipeline: stages, each with its share of the layers, work on
different microbatches at once.

The schedule of GSPMD (Xu et al. 2021, section 3.3), inside one jitted program: all stages are one
vmapped function whose leading axis is split over the mesh, and handing on to the next stage is a
rotation of that axis. With repeats it is circular (Narayanan et al. 2021, section 2.2,
interleaved): each stage has several shorter runs of layers, and microbatches go round that many
times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.ops.weights import expand_specs
from llm_jax.sharding import (
    RULES,
    constrain,
    constrain_with_grad,
    interleave_rows,
    multiples,
    unstrided,
)
from llm_jax.types import ConfigError, Params

# (parameters of one stage's layers, x [b, T, D], what each row brings, which of the repeats) -> (x,
# what each layer says)
Stage = Callable[[Params, Array, Any, Array], tuple[Array, Any]]


class Schedule(NamedTuple):
    """layers: of one stage in one repeat. At step s, stage p works on item s - p, where item i is
    microbatch i % M in repeat i // M.
    """

    stages: int
    repeats: int
    microbatches: int
    layers: int

    @property
    def steps(self) -> int:
        """In each of which every stage runs once."""
        return self.microbatches * self.repeats + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the steps in which a stage has nothing to do, while the pipeline fills and
        empties.
        """
        return (self.stages - 1) / self.steps


def schedule(
    model: ModelConfig, execution: ExecutionConfig, mesh_shape: Mapping[str, int], rows: int
) -> Schedule:
    """How a step's piece of the batch, of B = ``rows``, goes over mesh.pipeline.

    Raises ConfigError, with a number that would fit, for layers, microbatches or rows that do not
    divide, for dropout, and for settings of a pipeline where there is none.
    """
    stages, ways = (
        mesh_shape["pipeline"],
        math.prod(mesh_shape[axis] for axis in RULES["batch"] or ()),
    )
    L, period, R = model.num_layers, model.period, execution.pipeline_repeats
    M = execution.microbatches or stages
    if stages == 1 and (execution.microbatches or R > 1):
        name = "microbatches" if execution.microbatches else "pipeline_repeats"
        raise ConfigError(
            f"execution.{name} is {getattr(execution, name)}, but mesh.pipeline is 1: set that too,"
            " or leave this out"
        )
    if stages > 1 and (model.encoder or isinstance(model.positions, RelativePositionsConfig)):
        what = "encoder 'on'" if model.encoder else "positions 'relative'"
        raise ConfigError(
            f"model.{what} does not go through mesh.pipeline {stages}; set it to 1, and use the"
            " other axes"
        )
    if stages > 1 and model.first_layers:
        raise ConfigError(
            f"model.first_layers is 'on', and all stages of mesh.pipeline {stages} have layers of"
            " one kind; set it to none, or use another mesh"
        )
    runs = f"mesh.pipeline {stages}" + (f" x execution.pipeline_repeats {R}" if R > 1 else "")
    if stages * R > L:
        raise ConfigError(
            f"{runs} is more stages than the model has layers, {L}; lower it, or raise"
            " model.num_layers"
        )
    if L % (stages * R):
        raise ConfigError(
            f"model.num_layers {L} does not divide over {runs}; use {multiples(L, stages * R)}"
            " layers, or another mesh"
        )
    layers = L // (stages * R)
    if layers % period and stages > 1:
        raise ConfigError(
            f"stages of {layers} layers do not hold whole repeats of the {period} layers after"
            f" which windows and rotations repeat; use {multiples(L, stages * R * period)} layers,"
            " or another mesh"
        )
    if M % stages:
        raise ConfigError(
            f"execution.microbatches {M} is not a multiple of mesh.pipeline {stages}; use"
            f" {multiples(M, stages)}"
        )
    if rows % (M * ways):
        raise ConfigError(
            f"data.batch_size (per accumulation step) {rows} does not divide into"
            f" execution.microbatches {M} for each of {ways} mesh shards; use"
            f" {multiples(rows, M * ways)}"
        )
    if model.dropout and stages > 1:
        raise ConfigError(
            f"model.dropout is {model.dropout}, and over mesh.pipeline {stages} it would draw other"
            " numbers than without; set it to 0"
        )
    return Schedule(stages, R, M, layers)


def through_stages(
    stage: Stage,
    plan: Schedule,
    params: Params,
    specs: Params,
    x: Array,
    rows: Any,
    length: str | None,
) -> tuple[Array, Any]:
    """x [B, T, D] through all layers, and what the layers say, summed over microbatches: [L, …].

    params: stacked on L, with their ``specs`` · rows: a tree of arrays [B, …], of which a
    stage gets those of its microbatch ·
    length: logical axis of T between layers. x comes, and goes, with its rows split over
    mesh.pipeline too ("outer_batch").
    """
    P, R, M, _ = plan
    inside, outside = ("batch", length, "act_embed"), ("outer_batch", length, "act_embed")
    weights = jax.tree.map(
        lambda w, spec: _by_stage(w, spec.axes[1:], plan), params, expand_specs(specs, params)
    )
    x = interleave_rows(constrain_with_grad(x, inside, outside), M)
    rows = jax.tree.map(lambda a: interleave_rows(a, M), rows)
    first_stage = jnp.arange(P) == 0
    at_first = first_stage[:, None, None, None]

    def one_stage(weights: Params, x: Array, item: Array) -> tuple[Array, Any]:
        mine = jax.tree.map(lambda a: _at(a, item % M), rows)
        return stage(weights, x, mine, jnp.clip(item // M, 0, R - 1))

    def step(carry: tuple, s: Array) -> tuple:
        handed_on, waiting = carry
        items = s - jnp.arange(P)
        x = jnp.where(at_first, _at(waiting, s % M, axis=1), handed_on)
        x, aux = jax.vmap(one_stage, spmd_axis_name="pipeline")(weights, x, items)
        handed_on = constrain(_to_the_next(x), "stage", *inside)
        # What the last stage is done with waits at the first, for the next repeat or the end.
        slot = (s - P + 1) % M
        back = jnp.where(s >= P - 1, handed_on, _at(waiting, slot, axis=1))
        waiting = jax.lax.dynamic_update_index_in_dim(waiting, back, slot, 1)
        return (handed_on, constrain(waiting, "stage", None, *inside)), aux

    waiting = constrain(jnp.broadcast_to(x[None], (P, *x.shape)), "stage", None, *inside)
    # Until its first microbatch arrives a stage works on numbers of the right size, whose results
    # nobody reads.
    (_, waiting), aux = jax.lax.scan(step, (waiting[:, 0], waiting), jnp.arange(plan.steps))
    done = jnp.sum(jnp.where(at_first[..., None], waiting, jnp.zeros_like(waiting)), axis=0)
    return constrain(unstrided(done), *outside), jax.tree.map(lambda a: _by_layer(a, plan), aux)


def on_devices(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """``jax.shard_map`` over the current mesh, of which each stage of a pipeline runs ``f`` as it
    is, and not the form of it for many stages at once: conditionals stay conditionals, and kernels
    need no such form. out_specs: of one array.
    """
    mapped = jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    if jax.sharding.get_abstract_mesh().shape["pipeline"] == 1:
        return mapped
    call = jax.custom_batching.custom_vmap(mapped)

    @call.def_vmap
    def of_all_stages(_: int, batched: Any, *args: Any) -> tuple[Array, bool]:
        def on_stage(*args: Any) -> Array:
            return f(*jax.tree.map(lambda a, b: a[0] if b else a, args, tuple(batched)))[None]

        # Not a map over in_specs: they are None where an argument is.
        specs = jax.tree.map(
            lambda b, spec: PartitionSpec("pipeline", *spec) if b else spec,
            tuple(batched),
            tuple(in_specs),
        )
        whole = jax.shard_map(
            on_stage,
            in_specs=specs,
            out_specs=PartitionSpec("pipeline", *out_specs),
            check_vma=False,
        )
        return whole(*args), True

    return call


@jax.custom_vjp
def _to_the_next(x: Array) -> Array:
    """[P, …], each stage's to the stage after it, the last one's to the first. Its gradient is one
    rotation back, where the transpose of the slices that a rotation is made of would send twice.
    """
    return jnp.roll(x, 1, axis=0)


_to_the_next.defvjp(
    lambda x: (jnp.roll(x, 1, axis=0), None), lambda _, g: (jnp.roll(g, -1, axis=0),)
)


def _by_stage(w: Array, names: tuple[str | None, ...], plan: Schedule) -> Array:
    """[L, …] -> [P, layers, R, …], each stage's on its devices; without repeats [P, layers, …].

    Layers of several repeats change places for it, once in a step and as they lie, in shares of
    mesh.fsdp.
    """
    P, R, _, layers = plan
    if R == 1:
        return constrain(w.reshape(P, layers, *w.shape[1:]), "stage", None, *names)
    w = jnp.moveaxis(w.reshape(R, P, layers, *w.shape[1:]), 0, 2)
    return constrain(w, "stage", None, None, *names)


def _by_layer(aux: Array, plan: Schedule) -> Array:
    """[steps, P, layers, …] -> [L, …], of real microbatches alone."""
    P, R, M, layers = plan
    items = np.arange(plan.steps)[:, None] - np.arange(P)[None, :]
    real = (items >= 0) & (items < M * R)
    counts = (real[..., None] & (items[..., None] // M == np.arange(R))).astype(np.float32)
    total = jnp.einsum("spr,spl...->rpl...", counts, aux)
    return total.reshape(R * P * layers, *aux.shape[3:])


def _at(x: Array, index: Array, axis: int = 0) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
