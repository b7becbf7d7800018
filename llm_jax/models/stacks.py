"""The layers of a model, as stacks of layers that are alike: the first ones if they differ
(``ModelConfig.stacks``), and the others. The parameters of a stack have a leading axis L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.blocks import Block
from llm_jax.models.inputs import Aux, LayerInput, LayerOutput, StackInput, StackOutput
from llm_jax.models.layers import run_module
from llm_jax.models.parameters import stacked
from llm_jax.models.recurrent import RecurrentBlock
from llm_jax.models.remat import remat
from llm_jax.ops.cache import LayerCache
from llm_jax.types import Params

# The cache of each layer, or None for each without one.
Caches = Sequence[LayerCache | None]


class Stack(NamedTuple):
    """Layers that are alike.

    Attributes:
        name: in the parameters.
        block: the module of each layer.
        config: the model's, with the number of these layers.
        start: how many layers of the model are before them.
    """

    name: str
    block: Block
    config: ModelConfig
    start: int

    @property
    def execution(self) -> ExecutionConfig:
        return self.block.execution


def make_stacks(config: ModelConfig, execution: ExecutionConfig) -> tuple[Stack, ...]:
    """The stacks of a model, from the first layer to the last."""
    stacks: list[Stack] = []
    start = 0
    for name, layer, count in config.stacks:
        # The block keeps the model's number of layers: its initial scale depends on it.
        block = (RecurrentBlock if config.recurrent else Block)(layer, execution)
        stacks.append(Stack(name, block, dataclasses.replace(layer, num_layers=count), start))
        start += count
    return tuple(stacks)


def init_stacks(stacks: Sequence[Stack], key: Array, x: Array) -> Params:
    """Declared parameters of each stack, by its name. x: a stand-in [1, 1, D]."""
    # The last stack has the key that it would have alone.
    keys = {"layers": key, "first_layers": jax.random.fold_in(key, 1)}
    return {s.name: _init_stack(s, keys[s.name], x) for s in stacks}


def _init_stack(stack: Stack, key: Array, x: Array) -> Params:
    """Declared parameters of the layers of a stack, every array with a leading axis L."""
    inputs = LayerInput(memory=x)

    def init_layer(key: Array) -> Params:
        return stack.block.init(key, x, inputs, None)["params"]

    return stacked(jax.vmap(init_layer)(jax.random.split(key, stack.config.num_layers)))


def run_stacks(
    stacks: Sequence[Stack],
    params: Params,
    x: Array,
    inputs: StackInput,
    caches: tuple[LayerCache, ...] | None,
) -> StackOutput:
    """x [B, T, D] through all stacks. params and caches: of the whole model."""
    written: tuple[LayerCache, ...] = ()
    by_stack: list[Aux] = []
    for stack in stacks:
        end = stack.start + stack.config.num_layers
        own = None if caches is None else caches[stack.start : end]
        out = run_stack(stack, params[stack.name], x, inputs, own)
        x = out.hidden
        written += out.caches or ()
        if out.aux:
            by_stack.append(out.aux)
    aux: Aux = jax.tree.map(_concatenated, *by_stack) if by_stack else {}
    return StackOutput(x, None if caches is None else written, aux)


def run_stack(
    stack: Stack,
    params: Params,
    x: Array,
    inputs: StackInput,
    caches: tuple[LayerCache, ...] | None,
    *,
    select: Callable[[Params], Params] | None = None,
) -> StackOutput:
    """x [B, T, D] through the layers of one stack.

    With ``layers="scan"`` the layers are one loop over repeats of the patterns of windows and
    rotations, so that these stay static in every layer. Layers beyond the last whole repeat are
    unrolled after the loop.

    Args:
        stack: the layers.
        params: of the stack, with a leading axis L; or a tuple with the parameters of each layer
            (``params.layout``), which are always unrolled.
        x: residual stream [B, T, D].
        inputs: what all layers are given.
        caches: of each layer, or None.
        select: makes the parameters of a layer of its part of ``params``. It runs within the layer,
            so that the backward pass recomputes its result with the layer.
    """
    run = _Run(stack, inputs, select)
    layers = stack.config.num_layers
    period = stack.config.period
    scan = stack.execution.layers == "scan" and not isinstance(params, tuple)
    scanned = layers // period * period if scan else 0
    before: Caches = [None] * layers if caches is None else caches
    parts: list[_Part] = []
    if scanned:
        parts.append(_scan_layers(run, params, x, before[:scanned]))
        x = parts[-1].hidden
    if scanned < layers:
        rest = _layers_from(params, scanned, layers)
        parts.append(_unroll_layers(run, rest, x, before[scanned:]))
        x = parts[-1].hidden
    aux: Aux = jax.tree.map(_concatenated, *(part.aux for part in parts))
    if caches is None:
        return StackOutput(x, None, aux)
    written = tuple(cache for part in parts for cache in part.caches if cache is not None)
    return StackOutput(x, written, aux)


class _Run(NamedTuple):
    """What does not change from layer to layer of a stack."""

    stack: Stack
    inputs: StackInput
    select: Callable[[Params], Params] | None

    def layer(
        self, like: int, index: int | Array, params: Params, x: Array, cache: LayerCache | None
    ) -> LayerOutput:
        """Layer ``index`` of the stack, whose window and rotation are those of layer ``like``."""
        stack = self.stack
        inputs = self.inputs.of_layer(stack.config, stack.start + like, stack.start + index)
        if self.select is not None:
            params = self.select(params)
        return run_module(stack.block, params, x, inputs, cache)


class _Part(NamedTuple):
    """Some layers of a stack after they ran: as ``StackOutput``, with a None for each cache."""

    hidden: Array
    caches: Caches
    aux: Aux


def _scan_layers(run: _Run, params: Params, x: Array, caches: Caches) -> _Part:
    """The first ``len(caches)`` layers in one loop, which runs a whole repeat in each step."""
    layers = len(caches)
    period = run.stack.config.period
    repeats = layers // period
    policy = run.stack.execution.remat
    steps = [remat(partial(run.layer, like), policy, in_scan=True) for like in range(period)]

    def one_repeat(x: Array, xs: tuple[Array, Params, Caches]) -> tuple[Array, Any]:
        repeat, weights, caches = xs
        written = []
        by_layer = []
        for like, step in enumerate(steps):
            index = repeat * period + like
            of_layer = jax.tree.map(lambda a, like=like: a[like], weights)
            out = step(index, of_layer, x, caches[like])
            x = out.hidden
            written.append(out.cache)
            by_layer.append(out.aux)
        return x, (tuple(written), jax.tree.map(_stacked, *by_layer))

    weights = jax.tree.map(lambda a: a[:layers].reshape(repeats, period, *a.shape[1:]), params)
    # By place in the pattern, since layers with other windows have other caches.
    by_place = tuple(_stacked_caches(caches[place::period]) for place in range(period))
    x, (by_place, aux) = jax.lax.scan(one_repeat, x, (jnp.arange(repeats), weights, by_place))
    aux = jax.tree.map(lambda a: a.reshape(layers, *a.shape[2:]), aux)
    written = [
        jax.tree.map(lambda a, repeat=layer // period: a[repeat], by_place[layer % period])
        for layer in range(layers)
    ]
    return _Part(x, written, aux)


def _unroll_layers(run: _Run, params: Sequence[Params], x: Array, caches: Caches) -> _Part:
    """The last ``len(caches)`` layers of the stack, one after another."""
    first = run.stack.config.num_layers - len(caches)
    policy = run.stack.execution.remat
    written = []
    by_layer = []
    for layer, (weights, cache) in enumerate(zip(params, caches), first):
        step = remat(partial(run.layer, layer, layer), policy, in_scan=False)
        out = step(weights, x, cache)
        x = out.hidden
        written.append(out.cache)
        by_layer.append(jax.tree.map(lambda a: a[None], out.aux))
    return _Part(x, written, jax.tree.map(_concatenated, *by_layer))


def _layers_from(params: Params, first: int, layers: int) -> Sequence[Params]:
    """The parameters of each layer from ``first`` on."""
    if isinstance(params, tuple):
        return params
    rest = jax.tree.map(lambda a: a[first:], params) if first else params
    return unstack(rest, layers - first)


def unstack(params: Params, layers: int) -> list[Params]:
    """The parameters of each layer, given those of a stack.

    The gradient of ``split`` is one concatenation, where that of indexing would pad L times.
    """
    leaves, structure = jax.tree.flatten(params)
    pieces = [jax.lax.split(a, (1,) * layers, axis=0) for a in leaves]
    return [
        jax.tree.unflatten(structure, [jnp.squeeze(piece[layer], 0) for piece in pieces])
        for layer in range(layers)
    ]


def _stacked_caches(caches: Caches) -> LayerCache | None:
    """The caches of layers that are alike, with a leading axis; None for layers without any."""
    return None if caches[0] is None else jax.tree.map(_stacked, *caches)


def _stacked(*arrays: Array) -> Array:
    return jnp.stack(arrays)


def _concatenated(*arrays: Array) -> Array:
    return jnp.concatenate(arrays)
