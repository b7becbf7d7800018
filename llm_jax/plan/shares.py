"""What one device holds of a step, by the sharding rules: parameters, rows, tokens and widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import Config, ModelConfig, OptimizerConfig
from llm_jax.models.pipeline import Schedule
from llm_jax.params.select import ALL, select, split
from llm_jax.sharding import RULES, partition_spec
from llm_jax.training.optimizer import make_optimizer
from llm_jax.types import ConfigError

# Axes over which parameters are stored in shards, and gathered for their products.
_KEPT_APART = ("embed", "expert_embed")


class Shapes(NamedTuple):
    """The abstract state of a model and its optimizer.

    Attributes:
        parameters: (path, shape, logical axes, whether it is trained) of each.
        optimizer_ratio: the optimizer's bytes per byte of trained parameters.
        optimizer_whole: bytes of the optimizer that no mesh splits.
    """

    parameters: tuple[tuple[str, tuple[int, ...], tuple[str | None, ...], bool], ...]
    optimizer_ratio: float
    optimizer_whole: float


@cache
def shapes(m: ModelConfig, o: OptimizerConfig, trainable: tuple[str, ...] = ALL) -> Shapes:
    """The shapes of a model's parameters and the size of its optimizer's state.

    Args:
        m: the model.
        o: the optimizer.
        trainable: which parameters are trained (``train.trainable``).
    """
    model = models.build(m, platform="tpu")
    params = jax.eval_shape(model.init, jax.random.key(0))
    chosen = select(trainable, model.specs, "train.trainable")
    trained, _ = split(params, chosen)
    optimizer = make_optimizer(
        o, o.warmup_steps + 1, trained, model.specs, m.balance_rate, growth=m.growth
    )
    state = jax.eval_shape(optimizer.init, trained)
    known = {a.shape for a in jax.tree.leaves(trained)}
    leaves = jax.tree.leaves(state)
    sharded = _size([a for a in leaves if a.shape in known])
    whole = _size([a for a in leaves if a.shape not in known])
    named = jax.tree_util.tree_map_with_path(
        lambda path, a, spec, is_trained: (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            a.shape,
            spec.axes,
            is_trained,
        ),
        params,
        model.specs,
        chosen,
    )
    flat = jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, tuple))
    return Shapes(tuple(flat), sharded / _size(jax.tree.leaves(trained)), whole)


def _size(leaves: list[Any]) -> int:
    """Bytes of abstract arrays."""
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in leaves)


class Parameters(NamedTuple):
    """How many parameters a device has.

    Attributes:
        layers: those of its stage's layers, as they are stored.
        rest: the others, as they are stored.
        worked_layers: those of its stage's layers, gathered for their products.
        worked_rest: the others, gathered for their products.
        trained_layers: those of ``layers`` that have a gradient and optimizer slots.
        trained_rest: those of ``rest`` that do.
    """

    layers: float
    rest: float
    worked_layers: float
    worked_rest: float
    trained_layers: float
    trained_rest: float


@cache
def parameters_on_device(
    m: ModelConfig,
    o: OptimizerConfig,
    mesh: tuple[tuple[str, int], ...],
    trainable: tuple[str, ...] = ALL,
) -> Parameters:
    """The parameters of one device of a mesh, given as (axis, size) pairs.

    Raises:
        ConfigError: a dimension does not divide over the mesh.
    """
    sizes = dict(mesh)
    stored = {True: 0.0, False: 0.0}
    gathered = {True: 0.0, False: 0.0}
    trained = {True: 0.0, False: 0.0}
    for path, shape, axes, is_trained in shapes(m, o, trainable).parameters:
        partition_spec(axes, shape, sizes, path)
        here = math.prod(shape) / math.prod(ways_of(axis, sizes) for axis in axes if axis)
        is_layer = path.startswith("layers")
        stored[is_layer] += here
        trained[is_layer] += here * is_trained
        gathered[is_layer] += here * math.prod(
            ways_of(axis, sizes) for axis in axes if axis in _KEPT_APART
        )
    return Parameters(
        layers=stored[True],
        rest=stored[False],
        worked_layers=gathered[True],
        worked_rest=gathered[False],
        trained_layers=trained[True],
        trained_rest=trained[False],
    )


def ways_of(axis: str, mesh: Mapping[str, int]) -> int:
    """Into how many shares a logical axis is split."""
    return math.prod(mesh[a] for a in RULES[axis] or ())


class PerDevice(NamedTuple):
    """What one device has of a step.

    Attributes:
        parameters: how many it holds and computes with.
        rows: of one accumulation step.
        tokens: of a microbatch in the layers' products.
        between: of a microbatch between the layers' products.
        outer: tokens of one accumulation step in the loss.
        heads: its share of the query heads.
        keys: its share of the key/value heads.
        mlp: its share of the MLP that every token passes, so without routed experts.
        vocab: its share of the vocabulary.
        chosen: rows that its tokens send to experts.
        routed: rows that its own experts have room for.
        width: its share of the width of an expert.
        experts: parameters of its own experts in one layer, gathered.
        pieces: accumulation steps.
        plan: how microbatches go through the stages.
    """

    parameters: Parameters
    rows: float
    tokens: float
    between: float
    outer: float
    heads: float
    keys: float
    mlp: float
    vocab: float
    chosen: float
    routed: float
    width: float
    experts: float
    pieces: int
    plan: Schedule


def shares(config: Config, mesh: Mapping[str, int]) -> PerDevice:
    """What one device has of a step on ``mesh``.

    Raises:
        ConfigError: a dimension does not divide over the mesh.
    """
    m = config.model
    data = config.data
    pieces = config.train.accumulation
    ways = partial(ways_of, mesh=mesh)
    _check_rows(config, mesh)
    plan = models.schedule(m, config.execution, mesh, data.batch_size // pieces)
    rows = data.batch_size / pieces / ways("batch")
    length = data.seq_length / ways("length")
    tokens = rows * length / plan.microbatches
    over = ways("act_length") / ways("length")
    split_between = config.execution.shard_sequence and data.seq_length % ways("act_length") == 0
    dense = (m.experts.shared if m.experts else 1) * m.mlp.hidden_dim
    own = m.experts.count / ways("expert") if m.experts else 0.0
    width = m.mlp.hidden_dim / ways("mlp")
    chosen = tokens * m.experts.per_token if m.experts else 0.0
    routed = chosen
    if m.experts and mesh["expert"] > 1:
        # As many tokens of other devices as can choose its own experts (ops.moe.apply_experts).
        routed = mesh["expert"] * tokens * min(m.experts.per_token, own)
    return PerDevice(
        parameters=parameters_on_device(
            m, config.optimizer, tuple(mesh.items()), config.train.trainable
        ),
        rows=rows,
        tokens=tokens,
        between=tokens / over if split_between else tokens,
        outer=rows * length / plan.stages,
        heads=m.attention.num_heads / ways("act_heads"),
        keys=m.attention.kv_heads / ways("act_kv_heads"),
        mlp=dense / ways("act_mlp"),
        vocab=m.vocab_size / ways("act_vocab"),
        chosen=chosen,
        routed=routed,
        width=width,
        experts=own * (3 if m.mlp.kind == "gated" else 2) * m.embed_dim * width,
        pieces=pieces,
        plan=plan,
    )


def _check_rows(config: Config, mesh: Mapping[str, int]) -> None:
    """Raises ConfigError where the batch or its rows do not divide over the mesh."""
    data = config.data
    pieces = config.train.accumulation
    shares_of_batch = ways_of("batch", mesh)
    if data.batch_size % (pieces * shares_of_batch):
        raise ConfigError(
            f"{data.batch_size} rows do not divide over {pieces} accumulation steps of"
            f" {shares_of_batch} shares"
        )
    shares_of_row = ways_of("length", mesh)
    if data.seq_length % (2 * shares_of_row if shares_of_row > 1 else 1):
        raise ConfigError(
            f"rows of {data.seq_length} tokens do not divide over {shares_of_row} shares"
        )
