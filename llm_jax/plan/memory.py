"""Peak memory of a train step on a TPU without compiling it: what is alive at its worst moments, buffer by buffer.

The list was read from what the compiler keeps alive in its schedules; ``tests/plan/peak_memory.json`` has what it said of steps that
were compiled, and a test compares. It is that of a scan over layers with splash or blockwise attention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import Config, ModelConfig, OptimizerConfig
from llm_jax.sharding import RULES, partition_spec
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.step import pick_loss_chunk
from llm_jax.types import ConfigError
from llm_jax.validate import remat_names

# The last dimension of an array in the TPU's memory is filled up to a vector register.
_LANES = 128
# Mesh axes of which it knows what they do to memory.
AXES = ("data", "fsdp", "context", "tensor")
# What the estimate may be off by; a test holds it to that.
MARGIN = 1.1


class Shapes(NamedTuple):
    """Parameters as (path, shape, logical axes) · the optimizer's bytes for a byte of parameters, and those that no mesh splits."""

    parameters: tuple[tuple[str, tuple[int, ...], tuple[str | None, ...]], ...]
    optimizer_ratio: float
    optimizer_whole: float


@cache
def shapes(m: ModelConfig, o: OptimizerConfig) -> Shapes:
    model = models.build(m, platform="tpu")
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(make_optimizer(o, o.warmup_steps + 1, params, model.axes).init, params)
    known = {a.shape for a in jax.tree.leaves(params)}
    size = lambda leaves: sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in leaves)  # noqa: E731
    split, whole = [], []
    for a in jax.tree.leaves(state):
        (split if a.shape in known else whole).append(a)
    named = jax.tree_util.tree_map_with_path(
        lambda path, a, axes: (jax.tree_util.keystr(path, simple=True, separator="/"), a.shape, axes), params, model.axes
    )
    flat = jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, tuple))
    return Shapes(tuple(flat), size(split) / size(jax.tree.leaves(params)), size(whole))


class Local(NamedTuple):
    """What one device has. layers, rest: parameters of the layers and of the others on it · rows: of one accumulation step ·
    tokens: of them in the layers' products, and ``between`` them · heads, keys, mlp, vocab: its shares · pieces: accumulation steps.
    """

    layers: float
    rest: float
    rows: float
    tokens: float
    between: float
    heads: float
    keys: float
    mlp: float
    vocab: float
    pieces: int


@cache
def parameters_on_device(m: ModelConfig, o: OptimizerConfig, mesh: tuple[tuple[str, int], ...]) -> tuple[float, float]:
    """Parameters of the layers, and of the rest. ConfigError where one does not divide."""
    counts = {True: 0.0, False: 0.0}
    for path, shape, axes in shapes(m, o).parameters:
        partition_spec(axes, shape, dict(mesh), path)
        counts[path.startswith("layers")] += math.prod(shape) / math.prod(ways_of(axis, dict(mesh)) for axis in axes if axis)
    return counts[True], counts[False]


def ways_of(axis: str, mesh: Mapping[str, int]) -> int:
    """Shares that a logical axis is split into."""
    return math.prod(mesh[a] for a in RULES[axis] or ())


def unknown(config: Config) -> str:
    """Why there is no estimate: none of such models or meshes was compared with the compiler. Empty where there is one."""
    if config.model.num_experts:
        return f"model.num_experts is {config.model.num_experts}; memory is estimated, and ways to run searched, without experts only"
    m = config.model
    kinds = {"encoder_layers": m.encoder_layers > 0, "causal": not m.causal, "positions": m.positions == "relative"}
    if name := next((name for name, on in kinds.items() if on), ""):
        return f"model.{name} is {getattr(m, name)!r}; memory is estimated, and ways to run searched, of decoders without a bias only"
    if config.execution.remat.startswith("offload:"):
        return f"execution.remat is {config.execution.remat!r}; memory is estimated, and ways to run searched, without offloading only"
    other = next((f.name for f in dataclasses.fields(config.mesh) if f.name not in AXES and getattr(config.mesh, f.name) != 1), "")
    if other:
        return f"mesh.{other} is {getattr(config.mesh, other)}; memory is estimated, and ways to run searched, over {', '.join(AXES)} only"
    return ""


def local(config: Config, mesh: Mapping[str, int]) -> Local:
    """ConfigError where something does not divide."""
    m, pieces, ways = config.model, config.train.accumulation, partial(ways_of, mesh=mesh)
    if config.data.batch_size % (pieces * ways("batch")):
        raise ConfigError(f"{config.data.batch_size} rows do not divide over {pieces} accumulation steps of {ways('batch')} shares")
    if config.data.seq_length % (2 * ways("length") if ways("length") > 1 else 1):
        raise ConfigError(f"rows of {config.data.seq_length} tokens do not divide over {ways('length')} shares")
    layers, rest = parameters_on_device(m, config.optimizer, tuple(mesh.items()))
    rows = config.data.batch_size / pieces / ways("batch")
    tokens = rows * config.data.seq_length / ways("length")
    over = ways("act_length") / ways("length")
    split_between = config.execution.shard_sequence and config.data.seq_length % ways("act_length") == 0
    return Local(
        layers, rest, rows, tokens, tokens / over if split_between else tokens, m.num_heads / ways("act_heads"),
        m.kv_heads / ways("act_kv_heads"), m.mlp_dim / ways("act_mlp"), m.vocab_size / ways("act_vocab"), pieces,
    )


def saved_per_layer(config: Config, d: Local) -> float:
    """Bytes that a layer's forward pass leaves to its backward pass, beside its weights."""
    m, policy = config.model, config.execution.remat
    H, D = m.head_size, m.embed_dim
    # As attention's kernel takes them, heads are last.
    wide = 2 * d.tokens * max(H, _LANES)
    attention = d.heads * (wide + 4 * d.tokens)
    if policy == "none":
        # Of each norm three float32 copies; kernels' inputs, gathered; of the MLP its products and what the activation's gradient needs.
        norms = 2 * 3 * 4 * d.between * D + 2 * 2 * d.tokens * D
        mlp = 2 * d.tokens * d.mlp * (6 if m.mlp == "gated" else 3)
        return norms + mlp + (d.heads + 2 * d.keys) * wide + attention + 2 * d.tokens * d.heads * H
    carry = 2 * d.between * D
    if policy == "full":
        return carry
    names = {
        "query": d.heads * wide, "key": d.keys * wide, "value": d.keys * wide, "attention_out": attention,
        "mlp_hidden": 2 * d.tokens * d.mlp,
        # Only a norm after it has a use for it in the backward pass.
        "mlp_out": 0 if m.norm_position == "pre" else carry,
    }
    if policy == "dots":
        products = 2 * d.tokens * d.mlp * (2 if m.mlp == "gated" else 1)
        return 2 * carry + products + sum(names[name] for name in ("query", "key", "value", "attention_out"))
    return carry + sum(names[name] for name in remat_names(policy))


def peak(config: Config, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes of a device by purpose at the worst of four moments. mesh: the size of every axis. The vocabulary must be known.

    Raises ConfigError where a dimension does not divide over the mesh.
    """
    m, d, s = config.model, local(config, mesh), shapes(config.model, config.optimizer)
    held, accumulated = d.layers + d.rest, d.pieces > 1
    saved = m.num_layers * saved_per_layer(config, d)
    head = 2 * d.vocab * m.embed_dim
    # The layers' weights in bfloat16 are cast before the loops and handed from the forward to the backward one; between accumulation
    # steps the first copy stays.
    weights = 2 * d.layers * (2 if accumulated else 1) + head
    # The sum over accumulation steps; what the backward loop writes; of the other kernels, still in bfloat16.
    summed, written, rest = 4 * held if accumulated else 0, 4 * d.layers, 2 * d.rest
    moments = [
        _moment(summed, saved, weights, _forward(config, d)),
        _moment(summed + written + rest, saved, weights, _backward(config, mesh, d)),
        _moment(summed + rest, saved, weights, _loss(config, mesh, d) + head),
        _moment(4 * held, 0, 0, 0),
    ]
    return {
        "parameters": 4 * held,
        "optimizer state": 4 * held * s.optimizer_ratio + s.optimizer_whole,
        # Four int32 and a bool for each token.
        "batch": 17.0 * d.pieces * d.rows * config.data.seq_length,
        **max(moments, key=lambda moment: sum(moment.values())),
    }


def _moment(gradients: float, saved: float, weights: float, work: float) -> dict[str, float]:
    return {"gradients": gradients, "saved activations": saved, "weights in use": weights, "working space": work}


def _forward(config: Config, d: Local) -> float:
    """Working space of one layer's forward pass: heads, turned in float32, and attention's output, beside the MLP's products."""
    head = 2 * d.tokens * max(config.model.head_size, _LANES)
    return 9 * d.heads * head + 3 * 2 * d.tokens * d.mlp


def _backward(config: Config, mesh: Mapping[str, int], d: Local) -> float:
    """Working space of one layer's backward pass: that of attention or of the MLP, whichever is more."""
    m, again = config.model, config.execution.remat == "full"
    head = 2 * d.tokens * max(m.head_size, _LANES)
    # Gradients of queries and keys and their rotated halves; recomputed, attention's output and its normaliser (float32, one lane wide).
    attention = head * ((7 if again else 4) * d.heads + 3 * d.keys)
    # Gate, up and their gradients, and that of their product; recomputed, attention's output and normaliser are there too.
    mlp = 5 * 2 * d.tokens * d.mlp + (3 * d.heads * head if again else 0)
    layer = 2 * d.layers / m.num_layers * ways_of("embed", mesh)
    # The gradient of the hidden states in bfloat16, and in float32 as the loss made it.
    hidden = (2 + 4) * d.between * m.embed_dim
    # With tensor parallelism a layer's input and the gradient of its output are gathered from their positions.
    gathered = 2 * 2 * d.tokens * m.embed_dim if mesh["tensor"] > 1 else 0
    return max(attention, mlp) + layer + hidden + gathered


def _loss(config: Config, mesh: Mapping[str, int], d: Local) -> float:
    """Working space of a chunk of the loss: logits, their exponents and gradient in float32; hidden states and their gradient."""
    rows = int(d.rows * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(rows, config.model.vocab_size, mesh["tensor"])
    return 3 * 4 * d.tokens * chunk / mesh["tensor"] + (2 + 4) * d.tokens * config.model.embed_dim
