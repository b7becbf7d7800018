"""Where decoding has its arrays: parameters as in training but in the compute type, the cache over
rows and key/value heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llm_jax.models import Model
from llm_jax.ops.cache import Cache
from llm_jax.sharding import constrain, tree_shardings
from llm_jax.types import Params


def compute_params(model: Model, params: Params, *, out_first: bool = False) -> Params:
    """``params`` as decoding reads them: matrices in the compute type, cast once and not once per
    token; norms and routers keep float32 as in training; layers apart where they run unrolled, and
    there ``out_first`` as in ``Model.split_layers``.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1)).dtype
    return model.split_layers(_cast(params, dtype), out_first=out_first)


def compute_shardings(model: Model, params: Params, mesh: Mesh) -> Params:
    """NamedShardings of ``compute_params``: each parameter lives where it does in training."""
    shapes = jax.eval_shape(partial(compute_params, model), params)
    return tree_shardings(_axes(model.axes, shapes), shapes, mesh)


def place_cache(cache: Cache) -> Cache:
    """``cache`` over the current mesh as its ``axes`` say: rows over the batch axes, and heads as
    attention has them. Without a mesh, as it is.
    """
    return jax.tree.map(lambda a, axes: constrain(a, *axes), cache, cache.axes)


def cache_shardings(cache: Cache, mesh: Mesh) -> Cache:
    """NamedShardings of what ``place_cache`` gives on ``mesh``."""
    return tree_shardings(cache.axes, cache, mesh)


def _cast(params: Params, dtype: jnp.dtype) -> Params:
    def matrix(path):
        return path[-1].key in ("kernel", "embedding") and path[-2].key != "router"

    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) if matrix(path) else x, params
    )


def _axes(axes: Params, shapes: Params) -> Params:
    """The logical axes of parameters whose layers may be apart: those of the stack without their
    first.
    """

    def one(stack: Any) -> Params:
        return jax.tree.map(lambda names: names[1:], stack, is_leaf=lambda x: isinstance(x, tuple))

    apart = {name: len(stack) for name, stack in shapes.items() if isinstance(stack, tuple)}
    return {**axes, **{name: (one(axes[name]),) * layers for name, layers in apart.items()}}
