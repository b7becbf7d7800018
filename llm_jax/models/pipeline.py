"""A stack of layers over mesh.pipeline: stages, each with its share of the layers, work on
different microbatches at once.

The schedule is that of GSPMD (Xu et al. 2021, section 3.3), inside one jitted program: all stages
are one vmapped function whose leading axis is split over the mesh, and handing on to the next stage
is a rotation of that axis. With repeats it is circular (Narayanan et al. 2021, section 2.2,
interleaved): each stage has several shorter runs of layers, and each microbatch goes through the
stages that many times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.support import refuse
from llm_jax.ops.transposes import with_transpose
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

# (parameters of the stage's layers, x [b, T, D], rows of the microbatch, index of the repeat) ->
# (x, a tree of arrays [layers, …] to sum over microbatches)
Stage = Callable[[Params, Array, Any, Array], tuple[Array, Any]]


class Schedule(NamedTuple):
    """What every stage works on, step by step.

    At step s, stage p works on item s - p, where item i is microbatch i % M in repeat i // M.

    Attributes:
        stages: P.
        repeats: how many times each microbatch goes through the stages.
        microbatches: M.
        layers: of one stage in one repeat.
    """

    stages: int
    repeats: int
    microbatches: int
    layers: int

    @property
    def steps(self) -> int:
        """Number of steps; in each of them every stage runs once."""
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
    """How a step's piece of the batch goes through the stages of mesh.pipeline.

    Args:
        model: the model.
        execution: how it runs.
        mesh_shape: size of each mesh axis.
        rows: B, rows of the piece.

    Raises:
        ConfigError: layers, microbatches or rows do not divide (the message has a number that
            would), the model cannot be split into stages, or there are settings of a pipeline
            without one.
    """
    stages = mesh_shape["pipeline"]
    repeats = execution.pipeline_repeats
    microbatches = execution.microbatches or stages
    if stages == 1:
        _check_unused(execution)
    else:
        _check_model(model, stages)
    layers = _layers_of_stage(model, stages, repeats)
    if microbatches % stages:
        raise ConfigError(
            f"execution.microbatches {microbatches} is not a multiple of mesh.pipeline {stages};"
            f" use {multiples(microbatches, stages)}"
        )
    ways = math.prod(mesh_shape[axis] for axis in RULES["batch"] or ())
    if rows % (microbatches * ways):
        raise ConfigError(
            f"data.batch_size (per accumulation step) {rows} does not divide into"
            f" execution.microbatches {microbatches} for each of {ways} mesh shards; use"
            f" {multiples(rows, microbatches * ways)}"
        )
    return Schedule(stages, repeats, microbatches, layers)


def _check_unused(execution: ExecutionConfig) -> None:
    """Raises ConfigError for settings of a pipeline where mesh.pipeline is 1."""
    for name, default in (("microbatches", 0), ("pipeline_repeats", 1)):
        value = getattr(execution, name)
        if value != default:
            raise ConfigError(
                f"execution.{name} is {value}, but mesh.pipeline is 1: set that too, or leave this"
                " out"
            )


def _check_model(model: ModelConfig, stages: int) -> None:
    """Raises ConfigError for a model that cannot be split into stages."""
    refuse(model, "pipeline", f"mesh.pipeline {stages}")


def _layers_of_stage(model: ModelConfig, stages: int, repeats: int) -> int:
    """Layers of one stage in one repeat. Raises ConfigError if they do not divide."""
    total = model.num_layers
    runs = stages * repeats
    name = f"mesh.pipeline {stages}"
    if repeats > 1:
        name += f" x execution.pipeline_repeats {repeats}"
    if runs > total:
        raise ConfigError(
            f"{name} is more stages than the model has layers, {total}; lower it, or raise"
            " model.num_layers"
        )
    if total % runs:
        raise ConfigError(
            f"model.num_layers {total} does not divide over {name}; use {multiples(total, runs)}"
            " layers, or another mesh"
        )
    layers = total // runs
    if layers % model.period and stages > 1:
        raise ConfigError(
            f"stages of {layers} layers do not hold whole repeats of the {model.period} layers"
            " after which windows and rotations repeat; use"
            f" {multiples(total, runs * model.period)} layers, or another mesh"
        )
    return layers


def through_stages(
    stage: Stage,
    plan: Schedule,
    x: Array,
    rows: Any,
    *,
    params: Params,
    specs: Params,
    length: str | None,
) -> tuple[Array, Any]:
    """x through the layers of all stages.

    Args:
        stage: runs the layers of one stage.
        plan: the schedule.
        x: [B, T, D], rows split over mesh.pipeline too ("outer_batch").
        rows: a tree of arrays [B, …]; a stage gets those of its microbatch.
        params: of all layers, stacked on L.
        specs: of ``params``.
        length: logical axis of T between layers.

    Returns:
        [B, T, D], split as x; and the second result of ``stage``, [L, …], summed over microbatches.
    """
    inside = ("batch", length, "act_embed")
    outside = ("outer_batch", length, "act_embed")
    weights = jax.tree.map(
        lambda w, spec: _by_stage(w, spec.axes[1:], plan), params, expand_specs(specs, params)
    )
    x = interleave_rows(constrain_with_grad(x, inside, outside), plan.microbatches)
    rows = jax.tree.map(lambda a: interleave_rows(a, plan.microbatches), rows)
    is_first = (jnp.arange(plan.stages) == 0)[:, None, None, None]

    def one_stage(weights: Params, x: Array, item: Array) -> tuple[Array, Any]:
        own_rows = jax.tree.map(lambda a: _at(a, item % plan.microbatches), rows)
        repeat = jnp.clip(item // plan.microbatches, 0, plan.repeats - 1)
        return stage(weights, x, own_rows, repeat)

    def step(carry: tuple[Array, Array], s: Array) -> tuple[tuple[Array, Array], Any]:
        handed_on, waiting = carry
        items = s - jnp.arange(plan.stages)
        x = jnp.where(is_first, _at(waiting, s % plan.microbatches, axis=1), handed_on)
        x, aux = jax.vmap(one_stage, spmd_axis_name="pipeline")(weights, x, items)
        handed_on = constrain(_to_the_next(x), "stage", *inside)
        # What the last stage has finished waits at the first, for the next repeat or the end.
        slot = (s - plan.stages + 1) % plan.microbatches
        back = jnp.where(s >= plan.stages - 1, handed_on, _at(waiting, slot, axis=1))
        waiting = jax.lax.dynamic_update_index_in_dim(waiting, back, slot, 1)
        return (handed_on, constrain(waiting, "stage", None, *inside)), aux

    everywhere = jnp.broadcast_to(x[None], (plan.stages, *x.shape))
    waiting = constrain(everywhere, "stage", None, *inside)
    # Until its first microbatch arrives a stage works on numbers of the right size, whose results
    # nobody reads.
    start = (waiting[:, 0], waiting)
    (_, waiting), aux = jax.lax.scan(step, start, jnp.arange(plan.steps))
    at_first = jnp.where(is_first[..., None], waiting, jnp.zeros_like(waiting))
    done = jnp.sum(at_first, axis=0)
    return constrain(unstrided(done), *outside), jax.tree.map(lambda a: _by_layer(a, plan), aux)


def on_devices(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """``jax.shard_map`` over the current mesh, also inside the vmapped stages of a pipeline.

    There each stage runs ``f`` itself and not its vmapped form: conditionals stay conditionals, and
    kernels need no rule for vmap.

    Args:
        f: returns one array.
        in_specs: PartitionSpec of each argument.
        out_specs: PartitionSpec of the result.
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


def _to_the_next(x: Array) -> Array:
    """x [P, …], where each stage gets that of the stage before it, and the first that of the last.

    The gradient is one rotation back. The transpose of the slices that a rotation is made of would
    send twice.
    """
    forth = partial(jnp.roll, shift=1, axis=0)
    back = partial(jnp.roll, shift=-1, axis=0)
    return with_transpose(forth, back, (), x)


def _by_stage(w: Array, names: tuple[str | None, ...], plan: Schedule) -> Array:
    """[L, …] -> [P, layers, R, …], each stage's on its devices; without repeats [P, layers, …].

    With repeats, layers move between stages once a step, while they are still split over mesh.fsdp.
    """
    if plan.repeats == 1:
        w = w.reshape(plan.stages, plan.layers, *w.shape[1:])
        return constrain(w, "stage", None, *names)
    w = w.reshape(plan.repeats, plan.stages, plan.layers, *w.shape[1:])
    return constrain(jnp.moveaxis(w, 0, 2), "stage", None, None, *names)


def _by_layer(aux: Array, plan: Schedule) -> Array:
    """[steps, P, layers, …] -> [L, …], summed over the steps in which a stage had a microbatch."""
    items = np.arange(plan.steps)[:, None] - np.arange(plan.stages)[None, :]
    real = (items >= 0) & (items < plan.microbatches * plan.repeats)
    repeat = items[..., None] // plan.microbatches
    counts = (real[..., None] & (repeat == np.arange(plan.repeats))).astype(np.float32)
    total = jnp.einsum("spr,spl...->rpl...", counts, aux)
    return total.reshape(plan.repeats * plan.stages * plan.layers, *aux.shape[3:])


def _at(x: Array, index: Array, axis: int = 0) -> Array:
    """The entry of x at ``index`` of ``axis``."""
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
