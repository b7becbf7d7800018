"""Models whose arrays are sharded over Explicit mesh axes, which are part of an array's type.

Within a model XLA's partitioner splits the work (Auto axes): its functions are wrapped in
``jax.sharding.auto_axes``, and what they return is split as what they were given.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from llm_jax.models.contract import Head, Model, Output
from llm_jax.ops.cache import Cache
from llm_jax.types import Batch, Params


def takes_explicit_axes(model: Model) -> Model:
    """``model`` whose functions also take arrays that are sharded over Explicit axes.

    Hidden states, logits and the cache have the sharding of the tokens, of the hidden states and of
    the cache that are given.
    """
    functions = _Functions(model)
    return model._replace(apply=functions.apply, logits=functions.logits, head=functions.head)


class _Functions:
    """Those functions of a model that read arrays."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def apply(
        self,
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
    ) -> Output:
        """As ``Model.apply``."""

        def call(params: Params, batch: Batch, cache: Cache | None, key: Array | None) -> Output:
            return self.model.apply(params, batch, cache, dropout_key=key, begin=begin)

        mesh = explicit_mesh(params, batch, cache)
        if mesh is None:
            return call(params, batch, cache, dropout_key)
        rows = spec_of(batch.inputs.ids)
        out = Output(
            hidden=_on(mesh, *rows, None),
            cache=jax.tree.map(lambda a: _on(mesh, *spec_of(a)), cache),
            aux=_on(mesh),
            load=_on(mesh),
        )
        return in_auto_axes(call, mesh, out)(params, batch, cache, dropout_key)

    def logits(self, params: Params, hidden: Array) -> Array:
        """As ``Model.logits``."""
        mesh = explicit_mesh(params, hidden)
        if mesh is None:
            return self.model.logits(params, hidden)
        rows = spec_of(hidden)[:-1]
        return in_auto_axes(self.model.logits, mesh, _on(mesh, *rows, None))(params, hidden)

    def head(self, params: Params) -> Head:
        """As ``Model.head``."""
        return self.model.head(params)


def in_auto_axes(function: Any, mesh: AbstractMesh, out: Any) -> Any:
    """``function`` of arrays on ``mesh``, with its Explicit axes as Auto axes. out: shardings."""
    kinds = zip(mesh.axis_names, mesh.axis_types)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=out)


def explicit_mesh(*trees: Any) -> AbstractMesh | None:
    """The mesh with Explicit axes that is current, or that the arrays are on; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    leaves = iter(jax.tree.leaves(trees) if mesh.empty else ())
    while mesh.empty and (leaf := next(leaves, None)) is not None:
        mesh = jax.typeof(leaf).sharding.mesh
    return mesh if AxisType.Explicit in mesh.axis_types else None


def spec_of(a: Array) -> tuple[Any, ...]:
    """The Explicit mesh axes of each dimension of an array, which are part of its type."""
    spec = tuple(jax.typeof(a).sharding.spec)
    return (*spec, *(None,) * (a.ndim - len(spec)))


def _on(mesh: AbstractMesh, *spec: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec))
