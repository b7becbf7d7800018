"""The transformer of one stack as a ``Model``: embeddings, the stack, the final norm and the output
projection. Causal it is a decoder, otherwise an encoder; ``models.encoder_decoder`` puts two
together.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.positions import (
    LearnedPositionsConfig,
    RelativePositionsConfig,
    SinusoidalPositionsConfig,
)
from llm_jax.config.validate_model import validate_model
from llm_jax.models.blocks import Aux, Block, BlockInput, position_axes, run_stack
from llm_jax.models.cached import empty_cache, masks_by_window, relative_biases, written_cache
from llm_jax.models.contract import Head, Model, Output
from llm_jax.models.cross import Memory
from llm_jax.models.encoder import add_to_embedding, head_transform, init_extras
from llm_jax.models.layers import Norm
from llm_jax.models.parameters import declared, specs_of
from llm_jax.models.pipeline import schedule, through_stages
from llm_jax.models.rotations import rotations
from llm_jax.models.stacks import Stack, init_stacks, make_stacks, run_stacks
from llm_jax.ops.cache import Cache, Chunk, Slots, chunk_of
from llm_jax.ops.context import balanced
from llm_jax.ops.cpu import materialize
from llm_jax.ops.nn import dropout, soft_cap
from llm_jax.ops.positions import sinusoidal
from llm_jax.ops.weights import (
    OutputFirst,
    Weight,
    is_weight_leaf,
    matmul,
    take_rows,
    to_array,
)
from llm_jax.sharding import constrain, constrain_with_grad, multiples
from llm_jax.types import Batch, ConfigError, Params


def decoder(config: ModelConfig, execution: ExecutionConfig) -> Model:
    """A model of one stack. ``execution`` must be resolved (no ``auto``): see
    ``models.resolve_execution``. Beyond the contract, ``apply`` takes ``memory``, what an encoder
    read, where ``config.encoder`` says that there is one.

    Raises ConfigError for an architecture that cannot be built.
    """
    validate_model(config)
    if config.vocab_size < 1:
        raise ConfigError(
            "model.vocab_size is 0: set it, or give data.path so that it comes from the tokenizer"
        )
    dtype = jnp.dtype(execution.compute_dtype)
    stacks, norm = make_stacks(config, execution), Norm(config)

    declare = partial(_declare, config, dtype, stacks, norm)

    def init(key: Array) -> Params:
        return nn.unbox(declare(key))

    def apply(
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
        memory: Memory | None = None,
    ) -> Output:
        _check_inputs(config, batch, cache, begin, memory)
        chunk = (
            None if cache is None else chunk_of(batch.inputs.segment_ids, cache.length, begin=begin)
        )
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        length, between = position_axes(
            execution, batch.inputs.ids.shape[1], cached=cache is not None
        )
        stages = _stages()
        rows = "batch" if stages == 1 else "outer_batch"
        x = _embed(config, dtype, params, batch, rows)
        x = dropout(constrain(x, rows, between, "act_embed"), config.dropout, keys[0])
        if stages > 1:
            if cache is not None:
                raise ConfigError(
                    f"decoding does not go through mesh.pipeline {stages}; decode on a mesh of the"
                    " other axes"
                )
            x, aux = _pipelined(
                config,
                execution,
                stacks[-1].block,
                params["layers"],
                specs["layers"],
                x,
                batch,
                between,
            )
        else:
            shared = _with_memory(
                config,
                params,
                batch,
                cache,
                memory,
                _shared(config, execution, batch, cache, chunk, keys[1]),
            )
            layers = None if cache is None else cache.layers
            x, layers, aux = run_stacks(stacks, params, execution, x, shared, layers)
            cache = written_cache(cache, chunk, layers, memory)
        if config.norm.final:
            x = norm.apply({"params": params["final_norm"]}, x)
        if between != length:
            x = constrain_with_grad(x, (rows, length, "act_embed"), (rows, between, "act_embed"))
        load = aux.pop("load", None)
        return Output(x, cache, {name: jnp.sum(by_layer) for name, by_layer in aux.items()}, load)

    def init_cache(
        batch_size: int, length: int, *, rollback: int = 0, encoder_length: int = 0
    ) -> Cache:
        if not config.causal:
            raise ConfigError(
                "model.causal is False: tokens see those after them, and cannot be written one by"
                " one; it has no cache"
            )
        if length > config.max_length:
            raise ConfigError(
                f"a cache of {length} tokens is longer than model.max_length {config.max_length}"
            )
        return empty_cache(config, dtype, Slots(batch_size, length, rollback), encoder_length)

    specs = specs_of(jax.eval_shape(declare, jax.random.key(0)))
    logits, head, zigzag_order = (
        partial(_logits, config),
        partial(_head, config, dtype),
        partial(_zigzag_order, config, execution),
    )
    return Model(
        init=init,
        apply=apply,
        logits=logits,
        head=head,
        init_cache=init_cache,
        specs=specs,
        unrolled=execution.layers == "unroll",
        zigzag_order=zigzag_order,
        head_transform=partial(head_transform, config),
        recompute_after=config.rope_switch,
    )


def _check_inputs(
    config: ModelConfig, batch: Batch, cache: Cache | None, begin: bool, memory: Memory | None
) -> None:
    if batch.encoder is not None and memory is None:
        raise ConfigError(
            "batch.encoder is given, and model.encoder is none: no encoder would read"
            " it; leave it out"
        )
    if cache is not None and not config.causal:
        raise ConfigError(
            "model.causal is False: tokens see those after them, which a cache cannot have; leave"
            " the cache out"
        )
    if begin and cache is None:
        raise ConfigError(
            "begin is True, and there is no cache whose rows could begin: give one, or leave begin"
            " out"
        )


def _stages() -> int:
    """Devices along the pipeline of the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["pipeline"]


def _shared(
    config: ModelConfig,
    execution: ExecutionConfig,
    batch: Batch,
    cache: Cache | None,
    chunk: Chunk | None,
    dropout_key: Array | None,
) -> BlockInput:
    in_order = _zigzag_ways(config, execution) == 1
    masks = masks_by_window(config, batch.inputs, cache, chunk, in_order=in_order)
    angles = partial(rotations, config, batch, chunk)
    if chunk is not None:
        return BlockInput(
            masks, materialize(angles, batch.inputs.positions[0, 0] >= 0), dropout_key, chunk, None
        )
    return BlockInput(masks, angles(), dropout_key, None, batch.loss_mask.astype(jnp.float32))


def _with_memory(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    cache: Cache | None,
    memory: Memory | None,
    shared: BlockInput,
) -> BlockInput:
    """``shared`` with the bias of relative positions and what an encoder read, where there are."""
    if isinstance(config.positions, RelativePositionsConfig):
        shared = shared._replace(bias=relative_biases(config, params, batch, cache, shared.chunk))
    return (
        shared
        if memory is None
        else shared._replace(memory=memory, memory_mask=memory.mask(batch.inputs.segment_ids))
    )


def _pipelined(
    config: ModelConfig,
    execution: ExecutionConfig,
    block: Block,
    params: Params,
    specs: Params,
    x: Array,
    batch: Batch,
    between: str | None,
) -> tuple[Array, Aux]:
    """The layers over mesh.pipeline: each stage is a stack of its own, with the masks and positions
    of its microbatch.
    """
    plan = schedule(config, execution, jax.sharding.get_abstract_mesh().shape, x.shape[0])
    part = dataclasses.replace(config, num_layers=plan.layers)

    def stage(params: Params, x: Array, rows: Batch, repeat: Array) -> tuple[Array, Aux]:
        def pick(p):
            return jax.tree.map(lambda a: a if plan.repeats == 1 else a[repeat], p)

        x, _, aux = run_stack(
            block,
            params,
            part,
            execution,
            x,
            _shared(config, execution, rows, None, None, None),
            None,
            pick,
        )
        return x, aux

    return through_stages(stage, plan, params, specs, x, batch, between)


def _declare(
    config: ModelConfig, dtype: jnp.dtype, stacks: tuple[Stack, ...], norm: Norm, key: Array
) -> Params:
    """Initial parameters with their specs, as a tree of ``Declared``."""
    keys = jax.random.split(key, 4)
    D, V = config.embed_dim, config.vocab_size
    normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
    table = declared(normal, ("vocab", "embed"), "embedding", [1])
    params = {
        "embed": {"embedding": table(keys[0], (V, D))},
        **init_extras(config, jax.random.fold_in(key, 1)),
    }
    if isinstance(config.positions, LearnedPositionsConfig):
        table = declared(normal, ("position", "embed"), "position", [1])
        rows = config.max_length + config.positions.offset
        params["positions"] = {"positions": table(keys[1], (rows, D))}
    x = jnp.zeros((1, 1, D), dtype)
    params |= init_stacks(stacks, keys[2], x)
    if config.norm.final:
        params["final_norm"] = norm.init(keys[3], x)["params"]
    head = {}
    if not config.embedding.tied:
        head["kernel"] = declared(normal, ("embed", "vocab"), "head", [0])(keys[3], (D, V))
    if config.head.bias:
        head["bias"] = declared(zeros, ("vocab",), "bias")(keys[3], (V,))
    return params | ({"head": head} if head else {})


def _zigzag_ways(config: ModelConfig, execution: ExecutionConfig) -> int:
    """Devices of the ring over which ``_zigzag_order`` deals the tokens of a row; 1: in order."""
    mesh = jax.sharding.get_abstract_mesh()
    # What dropout zeroes goes by place: with it rows stay in order, so that no mesh changes a
    # number. Without causality all places have the same work.
    if mesh.empty or execution.context != "ring" or config.dropout or not config.causal:
        return 1
    return mesh.shape["context"]


def _zigzag_order(config: ModelConfig, execution: ExecutionConfig, batch: Batch) -> Batch:
    ways = _zigzag_ways(config, execution)
    if ways == 1:
        return batch
    rows, T = batch.inputs.ids.shape
    if T % (2 * ways):
        raise ConfigError(
            f"rows of {T} tokens do not divide into {2 * ways} pieces for mesh.context {ways}; use"
            f" data.seq_length {multiples(T, 2 * ways)}"
        )
    order = jnp.asarray(balanced(T, ways))

    def one(x: Array) -> Array:
        of_tokens = x.shape[:2] == (rows, T)
        return jnp.take(x, order, axis=1) if of_tokens else x

    return jax.tree.map(one, batch)


def _embed(config: ModelConfig, dtype: jnp.dtype, params: Params, batch: Batch, rows: str) -> Array:
    # Looking rows up in a table split by column would move the whole batch.
    table = params["embed"]["embedding"]
    if not is_weight_leaf(table):
        table = _whole_rows(table, dtype)
    x = _split_in_two_steps(take_rows(table, batch.inputs.ids, dtype), rows)
    if config.embedding.scale_by_width:
        x = x * jnp.asarray(config.embed_dim**0.5, dtype)
    if config.embedding.scale != 1:
        x = x * jnp.asarray(config.embedding.scale, dtype)
    if isinstance(config.positions, LearnedPositionsConfig):
        rows_of_table = batch.inputs.positions + config.positions.offset
        x = x + jnp.take(params["positions"]["positions"], rows_of_table, axis=0).astype(dtype)
    elif isinstance(config.positions, SinusoidalPositionsConfig):
        x = x + sinusoidal(batch.inputs.positions, config.embed_dim).astype(dtype)
    return add_to_embedding(config, params, x, batch)


def _split_in_two_steps(x: Array, rows: str) -> Array:
    """``x`` [B, T, D], rows split as the logical axis ``rows``, whose gradient first has its width
    split as its positions were, and then as the table it goes to.
    """

    @jax.custom_vjp
    def same(x: Array) -> Array:
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (constrain(g, rows, None, "width_for_length"),))
    return same(x)


def _logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
    hidden = head_transform(config, params, hidden)
    if config.head.scale != 1:
        hidden = hidden * jnp.asarray(config.head.scale, hidden.dtype)
    out = matmul(hidden, _head_weight(config, params)).astype(jnp.float32)
    if config.head.bias:
        out = out + jnp.expand_dims(params["head"]["bias"], range(out.ndim - 1))
    return soft_cap(out, config.head.softcap)


def _head_weight(config: ModelConfig, params: Params) -> Weight:
    """The output projection, a weight [D, V]."""
    if not config.embedding.tied:
        return params["head"]["kernel"]
    table = params["embed"]["embedding"]
    return OutputFirst(to_array(table, jnp.float32) if is_weight_leaf(table) else table)


def _head(config: ModelConfig, dtype: jnp.dtype, params: Params) -> Head:
    weight = _head_weight(config, params)
    kernel = weight.array if isinstance(weight, OutputFirst) else to_array(weight, jnp.float32).T
    if config.head.scale != 1:
        kernel = kernel * config.head.scale
    return Head(
        _whole_rows(kernel, dtype),
        config.head.softcap,
        params["head"]["bias"] if config.head.bias else None,
    )


def _whole_rows(table: Array, dtype: jnp.dtype) -> Array:
    """A [V, D] table in the compute type, gathered over fsdp; its gradient goes back to where the
    table lives.
    """
    return constrain_with_grad(table.astype(dtype), ("act_vocab", "act_embed"), ("vocab", "embed"))
