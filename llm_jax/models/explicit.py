"""Models whose arrays are sharded over Explicit mesh axes, which are part of an array's type.

Within a model XLA's partitioner splits the work (Auto axes): its functions are wrapped in
``jax.sharding.auto_axes``, and what they return is split as what they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.models.contract import Model, Output
from llm_jax.ops.cache import Cache
from llm_jax.ops.meshes import explicit_mesh, placement
from llm_jax.types import Batch, Params

T = TypeVar("T")


def takes_explicit_axes(model: Model) -> Model:
    """``model`` whose functions also take arrays that are sharded over Explicit axes.

    Hidden states, logits and the cache have the sharding of the tokens, of the hidden states and of
    the cache that are given.
    """
    functions = _Functions(model)
    return model._replace(apply=functions.apply, logits=functions.logits)


class _Functions:
    """The functions of a model that multiply its parameters."""

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

        def run(params: Params, batch: Batch, cache: Cache | None, key: Array | None) -> Output:
            return self.model.apply(params, batch, cache, dropout_key=key, begin=begin)

        whole: Any = PartitionSpec()
        hidden: Any = PartitionSpec(*placement(batch.inputs.ids))
        written = jax.tree.map(lambda a: PartitionSpec(*placement(a)), cache)
        out = Output(hidden, written, aux=whole, load=whole)
        return in_auto_axes(run, out, params, batch, cache, dropout_key)

    def logits(self, params: Params, hidden: Array) -> Array:
        """As ``Model.logits``."""
        rows = placement(hidden)[:-1]
        return in_auto_axes(self.model.logits, PartitionSpec(*rows), params, hidden)


def in_auto_axes(run: Callable[..., T], out: Any, *args: Any) -> T:
    """``run(*args)`` with the Explicit axes of the mesh as Auto axes within.

    Args:
        run: takes trees of arrays.
        out: the ``PartitionSpec`` of each result over these axes, or of each tree of results.
        *args: what ``run`` is called with.
    """
    mesh = explicit_mesh(*args)
    if mesh is None:
        return run(*args)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), out, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=shardings)(*args)
