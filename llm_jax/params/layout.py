"""How parameters lie in memory: another tree of weights that stands for the same parameters.

A model takes any of these trees (``models.contract``); on disk there is one, with layers stacked.
"""

from __future__ import annotations

from typing import Any

import jax

from llm_jax.models.stacks import unstack
from llm_jax.ops.weights import Joined, OutputFirst, is_weight_leaf
from llm_jax.types import Params, ParamSpec

# Stacks of layers in a tree of parameters.
STACKS = ("first_layers", "layers")
# Input axes of kernels that only ``ops.latent`` multiplies with, in two ways.
NOT_BY_MATMUL = ("kv_latent",)


def split_layers(params: Params) -> Params:
    """``params`` with each stack of layers as a tuple of one tree for each layer.

    A model runs such layers one after another, however it was built. Given a stack, a model of
    ``ExecutionConfig.layers`` "unroll" copies the weights of each layer out of it on every call.
    """

    def split(stack: Params) -> tuple[Params, ...]:
        return tuple(unstack(stack, len(jax.tree.leaves(stack)[0])))

    return {name: split(part) if name in STACKS else part for name, part in params.items()}


def split_specs(specs: Params, params: Params) -> Params:
    """The specs of ``params``, whose stacks ``split_layers`` may have split."""

    def of_layers(stack: Params, layers: tuple[Params, ...]) -> tuple[Params, ...]:
        return (jax.tree.map(ParamSpec.of_one_layer, stack),) * len(layers)

    return {
        name: of_layers(spec, params[name]) if isinstance(params[name], tuple) else spec
        for name, spec in specs.items()
    }


def output_first(specs: Params, params: Params) -> Params:
    """``params`` with outputs first in the kernels of dense layers and of the head, and with those
    that multiply the same input joined.

    A CPU multiplies a few rows faster with them: a step of 8 rows takes 0.87 of the time
    (``OutputFirst``), and a step of one row 0.93 of that (``Joined``).

    Args:
        specs: specs of ``params``, of the same structure.
        params: parameters whose layers are apart (``split_layers``).
    """
    if isinstance(params, tuple):
        return tuple(output_first(spec, layer) for spec, layer in zip(specs, params))
    if not isinstance(params, dict):
        return _turned(specs, params)
    group = _group(specs, params)
    out = {
        name: output_first(specs[name], part) for name, part in params.items() if name not in group
    }
    joined = Joined.of([params[name]["kernel"] for name in group]) if group else ()
    return out | {name: params[name] | {"kernel": leaf} for name, leaf in zip(group, joined)}


def _turned(spec: ParamSpec, weight: Any) -> Any:
    first = spec.contract[:1] == (0,)
    dense = spec.role in ("matrix", "head") and spec.axes[0] not in NOT_BY_MATMUL
    if is_weight_leaf(weight) or not first or not dense:
        return weight
    return OutputFirst.of(weight, len(spec.contract))


def _group(specs: dict[str, Params], params: dict[str, Params]) -> list[str]:
    """The modules whose kernels multiply the same input, by their index; none where these are of
    stacked layers, or no arrays.
    """
    index = {
        name: module["kernel"].group_index
        for name, module in specs.items()
        if isinstance(module, dict) and isinstance(module.get("kernel"), ParamSpec)
    }
    members = {name: i for name, i in index.items() if i is not None}
    if any(specs[name]["kernel"].axes[0] == "layers" for name in members):
        return []
    if any(is_weight_leaf(params[name]["kernel"]) for name in members):
        return []
    return sorted(members, key=members.__getitem__)
