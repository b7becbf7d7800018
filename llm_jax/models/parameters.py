"""How a module declares a parameter: its value with its ``ParamSpec``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.weights import Weight, WeightLeaf
from llm_jax.types import Params, ParamSpec, Role


@jax.tree_util.register_pytree_node_class
class Declared(nn.meta.AxisMetadata):
    """A parameter's initial value in a box with its spec, as ``init`` of a module returns it."""

    def __init__(self, value: Array, spec: ParamSpec) -> None:
        self.value = value
        self.spec = spec

    def tree_flatten(self) -> tuple[tuple[Array], ParamSpec]:
        return (self.value,), self.spec

    @classmethod
    def tree_unflatten(cls, spec: ParamSpec, values: Sequence[Array]) -> Declared:
        return cls(values[0], spec)

    def unbox(self) -> Array:
        return self.value

    # Flax gives ``val`` a type variable of the method, though it is always an array.
    def replace_boxed(self, val: Array) -> Declared:  # type: ignore[override]
        return Declared(val, self.spec)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        raise NotImplementedError("layers are stacked by models.stacks.init_stacks")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        raise NotImplementedError("layers are stacked by models.stacks.init_stacks")


Init = Callable[..., Declared]


def declared(
    init: nn.initializers.Initializer,
    axes: Sequence[str],
    role: Role,
    contract: Sequence[int] = (),
    group_index: int | None = None,
) -> Init:
    """The initializer ``init`` of a parameter with this spec."""
    spec = ParamSpec(tuple(axes), tuple(contract), role, group_index)

    def boxed(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Declared:
        return Declared(init(key, shape, dtype), spec)

    return boxed


def parameter(module: nn.Module, name: str, init: Init, shape: Sequence[int]) -> Array:
    """The parameter ``name`` of ``module``, an array of ``shape``."""
    # Flax unboxes what the initializer returns, which the type of ``param`` does not say.
    return cast(Array, module.param(name, init, tuple(shape)))


def weight(module: nn.Module, name: str, init: Init, shape: Sequence[int]) -> Weight:
    """The parameter ``name`` of ``module``: an array of ``shape``, or a leaf type in its place."""
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if isinstance(value, WeightLeaf):
            return value
    return parameter(module, name, init, shape)


def stacked(tree: Params) -> Params:
    """``tree`` of ``Declared``, whose values have got the leading axis L of layers, with that axis
    in their specs.
    """
    return jax.tree.map(
        lambda box: Declared(box.value, box.spec.stacked()), tree, is_leaf=is_declared
    )


def is_declared(x: object) -> bool:
    return isinstance(x, Declared)


def specs_of(tree: Params) -> Params:
    """The specs of a tree of ``Declared``."""
    return jax.tree.map(lambda box: box.spec, tree, is_leaf=is_declared)
