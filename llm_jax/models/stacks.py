"""The layers of a model as stacks of layers that are alike: the first ones, if they differ
(``ModelConfig.stacks``), and the others.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.blocks import Aux, Block, BlockInput, init_stack, run_stack
from llm_jax.ops.cache import LayerCache
from llm_jax.ops.masks import Mask
from llm_jax.types import Params


class Stack(NamedTuple):
    """name: in the parameters · config: as the model's, with the number of these layers · start:
    how many layers are before.
    """

    name: str
    block: Block
    config: ModelConfig
    start: int


def make_stacks(config: ModelConfig, execution: ExecutionConfig) -> tuple[Stack, ...]:
    """From the first layer to the last."""
    stacks, start = [], 0
    for name, layer, count in config.stacks:
        # The block keeps the model's number of layers, which its initial scale goes by.
        stacks.append(
            Stack(
                name, Block(layer, execution), dataclasses.replace(layer, num_layers=count), start
            )
        )
        start += count
    return tuple(stacks)


def init_stacks(stacks: tuple[Stack, ...], key: Array, x: Array) -> Params:
    """Boxed parameters of each stack, by its name. x: a stand-in [1, 1, D]."""
    # The others have the key that they have without first layers.
    keys = dict(zip(("layers", "first_layers"), (key, jax.random.fold_in(key, 1))))
    return {
        s.name: init_stack(
            s.block, keys[s.name], s.config.num_layers, x, Mask(), None, None, None, None, None, x
        )
        for s in stacks
    }


def run_stacks(
    stacks: tuple[Stack, ...],
    params: Params,
    execution: ExecutionConfig,
    x: Array,
    shared: BlockInput,
    cache: tuple[LayerCache, ...] | None,
) -> tuple[Array, tuple[LayerCache, ...] | None, Aux]:
    """``run_stack`` of one after the other. What layers say of their experts is of those that have
    any.
    """
    written: tuple[LayerCache, ...] = ()
    by_stack: list[Aux] = []
    for s in stacks:
        mine = None if cache is None else cache[s.start : s.start + s.config.num_layers]
        x, mine, aux = run_stack(
            s.block, params[s.name], s.config, execution, x, shared, mine, start=s.start
        )
        written += mine or ()
        by_stack += [aux] if aux else []
    together = jax.tree.map(lambda *a: jnp.concatenate(a), *by_stack) if by_stack else {}
    return x, None if cache is None else written, together
