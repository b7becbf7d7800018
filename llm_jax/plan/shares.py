"""What one device has of a step, by the table of logical axes: its parameters, rows, tokens and
widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import Config, ModelConfig, OptimizerConfig
from llm_jax.models.pipeline import Schedule
from llm_jax.sharding import RULES, partition_spec
from llm_jax.training.optimizer import make_optimizer
from llm_jax.types import ConfigError

# What a parameter is whole in where it is worked with, whatever it is split over where it is kept.
_KEPT_APART = ("embed", "expert_embed")


class Shapes(NamedTuple):
    """Parameters as (path, shape, logical axes) · the optimizer's bytes for a byte of parameters,
    and those that no mesh splits.
    """

    parameters: tuple[tuple[str, tuple[int, ...], tuple[str | None, ...]], ...]
    optimizer_ratio: float
    optimizer_whole: float


@cache
def shapes(m: ModelConfig, o: OptimizerConfig) -> Shapes:
    model = models.build(m, platform="tpu")
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(
        make_optimizer(o, o.warmup_steps + 1, params, model.specs, m.balance_rate).init, params
    )
    known = {a.shape for a in jax.tree.leaves(params)}

    def size(leaves):
        return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in leaves)

    split, whole = [], []
    for a in jax.tree.leaves(state):
        (split if a.shape in known else whole).append(a)
    named = jax.tree_util.tree_map_with_path(
        lambda path, a, spec: (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            a.shape,
            spec.axes,
        ),
        params,
        model.specs,
    )
    flat = jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, tuple))
    return Shapes(tuple(flat), size(split) / size(jax.tree.leaves(params)), size(whole))


class Parameters(NamedTuple):
    """How many a device has. layers, rest: of its stage's layers, and others, as they are kept ·
    worked_layers, worked_rest: the same, whole where they are kept apart, as products take them.
    """

    layers: float
    rest: float
    worked_layers: float
    worked_rest: float


@cache
def parameters_on_device(
    m: ModelConfig, o: OptimizerConfig, mesh: tuple[tuple[str, int], ...]
) -> Parameters:
    """ConfigError where a dimension does not divide."""
    kept, worked = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for path, shape, axes in shapes(m, o).parameters:
        partition_spec(axes, shape, dict(mesh), path)
        here = math.prod(shape) / math.prod(ways_of(axis, dict(mesh)) for axis in axes if axis)
        kept[path.startswith("layers")] += here
        worked[path.startswith("layers")] += here * math.prod(
            ways_of(axis, dict(mesh)) for axis in axes if axis in _KEPT_APART
        )
    return Parameters(kept[True], kept[False], worked[True], worked[False])


def ways_of(axis: str, mesh: Mapping[str, int]) -> int:
    """Shares that a logical axis is split into."""
    return math.prod(mesh[a] for a in RULES[axis] or ())


class PerDevice(NamedTuple):
    """What one device has. rows: of one accumulation step · tokens: of a microbatch in the layers'
    products, and ``between`` them · outer: of one accumulation step in the loss · heads, keys, mlp
    (of every token, without chosen experts), vocab: its shares of widths · chosen, routed: rows
    that its tokens send to experts, and that its own experts have room for · width: of one expert ·
    experts: parameters of its own in one layer, whole where they are kept apart · pieces:
    accumulation steps · plan: how microbatches go through stages.
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
    """ConfigError where something does not divide."""
    m, pieces, ways = config.model, config.train.accumulation, partial(ways_of, mesh=mesh)
    if config.data.batch_size % (pieces * ways("batch")):
        raise ConfigError(
            f"{config.data.batch_size} rows do not divide over {pieces} accumulation steps of"
            f" {ways('batch')} shares"
        )
    if config.data.seq_length % (2 * ways("length") if ways("length") > 1 else 1):
        raise ConfigError(
            f"rows of {config.data.seq_length} tokens do not divide over {ways('length')} shares"
        )
    parameters = parameters_on_device(m, config.optimizer, tuple(mesh.items()))
    plan = models.schedule(m, config.execution, mesh, config.data.batch_size // pieces)
    rows = config.data.batch_size / pieces / ways("batch")
    length = config.data.seq_length / ways("length")
    tokens, over = rows * length / plan.microbatches, ways("act_length") / ways("length")
    split_between = (
        config.execution.shard_sequence and config.data.seq_length % ways("act_length") == 0
    )
    dense = m.shared_experts * m.mlp_dim if m.num_experts else m.mlp_dim
    own, width = m.num_experts / ways("expert"), m.mlp_dim / ways("mlp")
    chosen = tokens * m.experts_per_token if own else 0.0
    # Of other devices' tokens as many as can choose its own experts (ops.moe.apply_experts).
    routed = (
        mesh["expert"] * tokens * min(m.experts_per_token, own) if mesh["expert"] > 1 else chosen
    )
    experts = own * (3 if m.mlp == "gated" else 2) * m.embed_dim * width
    return PerDevice(
        parameters,
        rows,
        tokens,
        tokens / over if split_between else tokens,
        rows * length / plan.stages,
        m.num_heads / ways("act_heads"),
        m.kv_heads / ways("act_kv_heads"),
        dense / ways("act_mlp"),
        m.vocab_size / ways("act_vocab"),
        chosen,
        routed,
        width,
        experts,
        pieces,
        plan,
    )
