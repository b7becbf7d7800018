"""The model of one stack: embeddings, layers, the final norm and the output projection.

Its layers are transformer blocks, or recurrent. With a causal mask it is a decoder, otherwise an
encoder. ``models.encoder_decoder`` puts two together.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import CacheConfig, ExecutionConfig, ModelConfig
from llm_jax.config.validate_model import validate_model
from llm_jax.models import heads
from llm_jax.models.caches import empty_cache, written_cache
from llm_jax.models.contract import Head, Model, Output
from llm_jax.models.embedding import embed
from llm_jax.models.initialize import declare_parameters
from llm_jax.models.inputs import Aux, Memory, StackOutput
from llm_jax.models.layers import Norm, run_module
from llm_jax.models.parameters import specs_of
from llm_jax.models.pipeline import schedule, through_stages
from llm_jax.models.row_layout import PositionAxes, position_axes, zigzag_ways
from llm_jax.models.stack_inputs import Call, stack_input
from llm_jax.models.stacks import make_stacks, run_stack, run_stacks
from llm_jax.ops.cache import Cache, Slots, chunk_of
from llm_jax.ops.nn import dropout
from llm_jax.sharding import constrain, constrain_with_grad, own_sizes
from llm_jax.types import Batch, ConfigError, Params


def transformer(config: ModelConfig, execution: ExecutionConfig) -> Model:
    """The model of one stack.

    Args:
        config: the model.
        execution: how it runs; it must be resolved (``models.resolve_execution``).

    Raises:
        ConfigError: the model cannot be built.
    """
    parts = Transformer(config, execution)
    return Model(
        init=parts.init,
        apply=parts.apply,
        logits=parts.logits,
        head=parts.head,
        init_cache=parts.init_cache,
        specs=parts.specs,
        config=config,
    )


class Transformer:
    """The functions of a model of one stack (``models.contract``)."""

    def __init__(self, config: ModelConfig, execution: ExecutionConfig) -> None:
        validate_model(config)
        if config.vocab_size < 1:
            raise ConfigError(
                "model.vocab_size is 0: set it, or give data.path so that it comes from the"
                " tokenizer"
            )
        self.config = config
        self.execution = execution
        self.dtype = jnp.dtype(execution.compute_dtype)
        self.stacks = make_stacks(config, execution)
        self._declare = partial(declare_parameters, config, self.dtype, self.stacks)

    @cached_property
    def specs(self) -> Params:
        """The ``ParamSpec`` of each parameter."""
        return specs_of(jax.eval_shape(self._declare, jax.random.key(0)))

    def init(self, key: Array) -> Params:
        """Initial parameters."""
        return nn.unbox(self._declare(key))

    def logits(self, params: Params, hidden: Array) -> Array:
        """Logits float32 [..., V] of hidden [..., D]."""
        return heads.logits(self.config, params, hidden)

    def head(self, params: Params) -> Head:
        """The output projection."""
        return heads.head(self.config, self.dtype, params)

    def init_cache(
        self,
        batch_size: int,
        length: int,
        *,
        rollback: int = 0,
        encoder_length: int = 0,
        kind: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
    ) -> Cache:
        """An empty cache; see ``models.contract.Model``."""
        slots = Slots(batch_size, length, rollback)
        return empty_cache(self.config, self.dtype, slots, encoder_length, kind)

    def apply(
        self,
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
        memory: Memory | None = None,
    ) -> Output:
        """The forward pass of a batch; see ``models.contract.Model``.

        Args:
            params: of the model.
            batch: the tokens.
            cache: of the rows; None for whole rows.
            dropout_key: None is deterministic.
            begin: whether the call begins the rows of the cache.
            memory: the output of an encoder, if ``config.encoder`` says that there is one.

        Raises:
            ConfigError: the arguments do not fit the model, each other or the mesh.
        """
        self._check_call(batch, cache, begin, memory)
        chunk = None
        if cache is not None:
            segments = batch.inputs.segment_ids
            chunk = chunk_of(segments, cache.length, begin=begin, table=cache.table)
        embed_key, layers_key = split_key(dropout_key)
        axes = position_axes(self.execution, batch.inputs.ids.shape[1], cached=cache is not None)
        pipelined = own_sizes()["pipeline"] > 1
        rows = "outer_batch" if pipelined else "batch"
        x = embed(self.config, params, batch, self.dtype, rows)
        x = constrain(x, rows, axes.between, "act_embed")
        x = dropout(x, self.config.dropout, embed_key)
        call = Call(batch, cache, chunk, memory)
        if pipelined:
            x, aux = self._run_pipeline(params, x, call, axes)
        else:
            x, layers, aux = self._run_layers(params, x, call, axes, layers_key)
            if cache is not None and chunk is not None and layers is not None:
                cache = written_cache(cache, chunk, layers, memory)
        if self.config.norm.final:
            x = run_module(Norm(self.config), params["final_norm"], x)
        if axes.between != axes.inside:
            inside = (rows, axes.inside, "act_embed")
            x = constrain_with_grad(x, inside, (rows, axes.between, "act_embed"))
        load = aux.pop("load", None)
        return Output(x, cache, {name: jnp.sum(terms) for name, terms in aux.items()}, load)

    def _run_layers(
        self, params: Params, x: Array, call: Call, axes: PositionAxes, key: Array | None
    ) -> StackOutput:
        """x [B, T, D] through all layers. key: of dropout."""
        inputs = stack_input(
            self.config, params, call, axes, in_order=self._in_order(), dropout_key=key
        )
        caches = None if call.cache is None else call.cache.layers
        return run_stacks(self.stacks, params, x, inputs, caches)

    def _run_pipeline(
        self, params: Params, x: Array, call: Call, axes: PositionAxes
    ) -> tuple[Array, Aux]:
        """x [B, T, D] through all layers over mesh.pipeline: each stage is a stack of its own, with
        the masks and positions of its microbatch.
        """
        mesh_shape = own_sizes()
        if call.cache is not None:
            raise ConfigError(
                f"decoding does not go through mesh.pipeline {mesh_shape['pipeline']}; decode on a"
                " mesh of the other axes"
            )
        plan = schedule(self.config, self.execution, mesh_shape, x.shape[0])
        config = dataclasses.replace(self.config, num_layers=plan.layers)
        stack = self.stacks[-1]._replace(config=config)

        def run_stage(weights: Params, x: Array, batch: Batch, repeat: Array) -> tuple[Array, Aux]:
            inputs = stack_input(self.config, params, Call(batch), axes, in_order=self._in_order())

            def of_repeat(weights: Params) -> Params:
                return jax.tree.map(lambda a: a[repeat], weights)

            select = None if plan.repeats == 1 else of_repeat
            out = run_stack(stack, weights, x, inputs, None, select=select)
            return out.hidden, out.aux

        return through_stages(
            run_stage,
            plan,
            x,
            call.batch,
            params=params[stack.name],
            specs=self.specs[stack.name],
            length=axes.between,
        )

    def _in_order(self) -> bool:
        """Whether tokens lie in their rows in order (``models.row_layout.zigzag_order``)."""
        return zigzag_ways(self.config, self.execution) == 1

    def _check_call(
        self, batch: Batch, cache: Cache | None, begin: bool, memory: Memory | None
    ) -> None:
        if batch.encoder is not None and memory is None:
            raise ConfigError(
                "batch.encoder is given, and model.encoder is none: no encoder would read"
                " it; leave it out"
            )
        if cache is not None and not self.config.causal:
            raise ConfigError(
                "model.causal is False: tokens see those after them, which a cache cannot have;"
                " leave the cache out"
            )
        if begin and cache is None:
            raise ConfigError(
                "begin is True, and there is no cache whose rows could begin: give one, or leave"
                " begin out"
            )


def split_key(key: Array | None) -> tuple[Array | None, Array | None]:
    """Two keys made of one; no keys without one."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second
