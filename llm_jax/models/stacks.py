"""The layers of a model as stacks of layers that are alike: the first ones, if they differ
(``ModelConfig.stacks``), and the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.blocks import Aux, Block, BlockInput, init_stack, run_stack, unstack
from llm_jax.models.layers import JOINED, PROJECTIONS, Attention, Dense
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
    made, start = [], 0
    for name, layer, count in config.stacks:
        # The block keeps the model's number of layers, which its initial scale goes by.
        made.append(
            Stack(
                name, Block(layer, execution), dataclasses.replace(layer, num_layers=count), start
            )
        )
        start += count
    return tuple(made)


def init_stacks(stacks: tuple[Stack, ...], key: Array, x: Array) -> Params:
    """Boxed parameters of each stack, by its name. x: a stand-in [1, 1, D]."""
    # The others have the key that they have without first layers.
    keys = dict(zip(("layers", "first_layers"), (key, jax.random.fold_in(key, 1))))
    return {
        s.name: init_stack(s.block, keys[s.name], s.config.num_layers, *_stand_ins(x))
        for s in stacks
    }


def _stand_ins(x: Array) -> tuple:
    """What a block is called with to make its parameters."""
    return x, Mask(), None, None, None, None, None, x


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
    said: list[Aux] = []
    for s in stacks:
        mine = None if cache is None else cache[s.start : s.start + s.config.num_layers]
        x, mine, aux = run_stack(
            s.block, params[s.name], s.config, execution, x, shared, mine, start=s.start
        )
        written += mine or ()
        said += [aux] if aux else []
    together = jax.tree.map(lambda *a: jnp.concatenate(a), *said) if said else {}
    return x, None if cache is None else written, together


def split_stacks(stacks: tuple[Stack, ...], params: Params, x: Array, out_first: bool) -> Params:
    """``params`` with each stack as a tuple of one tree per layer. x, out_first: as in
    ``init_stacks`` and ``Model.split_layers``.
    """
    out = dict(params)
    for s in stacks:
        layers = unstack(params[s.name], s.config.num_layers)
        products = _products(s.block, x) if out_first else _Products({}, set())
        out[s.name] = tuple(_out_first(layer, (), products) for layer in layers)
    return out


class _Products(NamedTuple):
    """By path, how many axes each ``Dense`` of a block sums over; and each ``Attention``, whose
    projections read the same.
    """

    widths: dict[tuple[str, ...], int]
    joined: set[tuple[str, ...]]


def _products(block: Block, x: Array) -> _Products:
    found = _Products({}, set())

    def note(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, Dense):
            found.widths[context.module.path] = len(context.module.inputs)
        elif isinstance(context.module, Attention):
            found.joined.add(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda key: init_stack(block, key, 1, *_stand_ins(x)), jax.random.key(0))
    return found


def _out_first(tree: Params, path: tuple[str, ...], products: _Products) -> Params:
    """A layer, or the part of it at ``path``, with its kernels as weights, and the projections of
    an attention as one.
    """
    if path in products.widths:
        return _turned(tree, products.widths[path])
    parts = {
        name: _out_first(p, (*path, name), products) if isinstance(p, dict) else p
        for name, p in tree.items()
    }
    if path in products.joined:
        apart = [parts.pop(name) for name in PROJECTIONS]
        # [outputs, inputs] and [outputs] each, once heads and their width are one axis.
        parts[JOINED] = jax.tree.map(
            lambda *a: jnp.concatenate([b.reshape(-1, *b.shape[2:]) for b in a]), *apart
        )
    return parts


def _turned(tree: Params, n: int) -> Params:
    """Parameters of a ``Dense`` over ``n`` axes with a weight [outputs, inputs] in place of the
    kernel.
    """
    kernel = tree["kernel"]
    weight = jnp.transpose(kernel, (*range(n, kernel.ndim), *range(n)))
    return {"weight": weight, **{name: a for name, a in tree.items() if name != "kernel"}}
