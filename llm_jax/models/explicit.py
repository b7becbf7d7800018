"""Models whose arrays are sharded over Explicit mesh axes, which are part of an array's type.

Within a model XLA's partitioner splits the work, and what a function returns is split as what it
was given.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

from llm_jax.models.contract import Model, Output
from llm_jax.ops.cache import Cache
from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.types import Batch, Params


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
        hidden: Any = explicit_spec(batch.inputs.ids)
        written = jax.tree.map(explicit_spec, cache)
        out = Output(hidden, written, aux=whole, load=whole)
        return place_automatically(run, out, params, batch, cache, dropout_key)

    def logits(self, params: Params, hidden: Array) -> Array:
        """As ``Model.logits``."""
        rows = explicit_spec(hidden, hidden.ndim - 1)
        return place_automatically(self.model.logits, rows, params, hidden)
