"""The layers of a model as stacks of layers that are alike: the first ones, if they differ (``ModelConfig.stacks``), and the others."""

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
from llm_jax.models.layers import Dense
from llm_jax.ops.kv_cache import KVCache
from llm_jax.ops.masks import Mask
from llm_jax.types import Params


class Stack(NamedTuple):
    """name: in the parameters · config: as the model's, with the number of these layers · start: how many layers are before."""

    name: str
    block: Block
    config: ModelConfig
    start: int


def make_stacks(config: ModelConfig, execution: ExecutionConfig) -> tuple[Stack, ...]:
    """From the first layer to the last."""
    made, start = [], 0
    for name, layer, count in config.stacks:
        # The block keeps the model's number of layers, which its initial scale goes by.
        made.append(Stack(name, Block(layer, execution), dataclasses.replace(layer, num_layers=count), start))
        start += count
    return tuple(made)


def init_stacks(stacks: tuple[Stack, ...], key: Array, x: Array) -> Params:
    """Boxed parameters of each stack, by its name. x: a stand-in [1, 1, D]."""
    # The others have the key that they have without first layers.
    keys = dict(zip(("layers", "first_layers"), (key, jax.random.fold_in(key, 1))))
    return {s.name: init_stack(s.block, keys[s.name], s.config.num_layers, *_stand_ins(x)) for s in stacks}


def _stand_ins(x: Array) -> tuple:
    """What a block is called with to make its parameters."""
    return x, Mask(), None, None, None, None, None, x


def run_stacks(
    stacks: tuple[Stack, ...], params: Params, execution: ExecutionConfig, x: Array, shared: BlockInput, cache: KVCache | None
) -> tuple[Array, KVCache | None, Aux]:
    """``run_stack`` of one after the other. What layers say of their experts is of those that have any."""
    written: list[KVCache] = []
    said: list[Aux] = []
    for s in stacks:
        part = slice(s.start, s.start + s.config.num_layers)
        mine = None if cache is None else cache._replace(k=cache.k[part], v=cache.v[part])
        x, mine, aux = run_stack(s.block, params[s.name], s.config, execution, x, shared, mine, start=s.start)
        written += [] if mine is None else [mine]
        said += [aux] if aux else []
    together = jax.tree.map(lambda *a: jnp.concatenate(a), *said) if said else {}
    if cache is None:
        return x, None, together
    k, v = (tuple(a for part in written for a in getattr(part, name)) for name in "kv")
    return x, written[-1]._replace(k=k, v=v), together


def split_stacks(stacks: tuple[Stack, ...], params: Params, x: Array, out_first: bool) -> Params:
    """``params`` with each stack as a tuple of one tree per layer. x, out_first: as in ``init_stacks`` and ``Model.split_layers``."""
    out = dict(params)
    for s in stacks:
        layers = unstack(params[s.name], s.config.num_layers)
        widths = _dense_inputs(s.block, x) if out_first else {}
        out[s.name] = tuple(_out_first(layer, widths) for layer in layers)
    return out


def _dense_inputs(block: Block, x: Array) -> dict[tuple[str, ...], int]:
    """How many axes each ``Dense`` of a block sums over, by its path."""
    found: dict[tuple[str, ...], int] = {}

    def note(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Dense):
            found[context.module.path] = len(context.module.inputs)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda key: init_stack(block, key, 1, *_stand_ins(x)), jax.random.key(0))
    return found


def _out_first(layer: Params, widths: dict[tuple[str, ...], int]) -> Params:
    """A layer with the kernels of ``widths`` as weights."""
    def turn(tree: Params, path: tuple[str, ...]) -> Params:
        if path in widths:
            kernel, n = tree["kernel"], widths[path]
            weight = jnp.transpose(kernel, (*range(n, kernel.ndim), *range(n)))
            return {"weight": weight, **{name: a for name, a in tree.items() if name != "kernel"}}
        return {name: turn(part, (*path, name)) if isinstance(part, dict) else part for name, part in tree.items()}

    return turn(layer, ())
