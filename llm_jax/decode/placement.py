"""Where decoding has its arrays: parameters as in training but in the compute type, the cache over rows and key/value heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llm_jax.models import Model
from llm_jax.ops.kv_cache import CrossCache, KVCache
from llm_jax.sharding import constrain, tree_shardings
from llm_jax.types import Params

CACHE_AXES = ("batch", "act_kv_heads", None, None)


def compute_params(model: Model, params: Params) -> Params:
    """``params`` as decoding reads them: matrices in the compute type, cast once and not once per token; norms and routers keep float32
    as in training; layers apart where they run unrolled.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1)).k[0].dtype
    return model.split_layers(_cast(params, dtype))


def compute_shardings(model: Model, params: Params, mesh: Mesh) -> Params:
    """NamedShardings of ``compute_params``: each parameter lives where it does in training."""
    shapes = jax.eval_shape(partial(compute_params, model), params)
    return tree_shardings(_axes(model.axes, shapes), shapes, mesh)


def place_cache(cache: KVCache) -> KVCache:
    """``cache`` with rows split over the batch axes of the current mesh and heads as attention has them; without a mesh, as it is."""
    place = lambda arrays: tuple(constrain(a, *CACHE_AXES) for a in arrays)  # noqa: E731
    cross = cache.cross and CrossCache(place(cache.cross.k), place(cache.cross.v), constrain(cache.cross.segments, "batch", None))
    return KVCache(place(cache.k), place(cache.v), constrain(cache.length, "batch"), cross)


def cache_shardings(cache: KVCache, mesh: Mesh) -> KVCache:
    """NamedShardings of what ``place_cache`` gives on ``mesh``."""
    by_layer = (CACHE_AXES,) * len(cache.k)
    cross = CrossCache(by_layer, by_layer, ("batch", None)) if cache.cross else None  # type: ignore[arg-type]
    return tree_shardings(KVCache(by_layer, by_layer, ("batch",), cross), cache, mesh)  # type: ignore[arg-type]


def _cast(params: Params, dtype: jnp.dtype) -> Params:
    matrix = lambda path: path[-1].key in ("kernel", "embedding") and path[-2].key != "router"  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if matrix(path) else x, params)


def _axes(axes: Params, shapes: Params) -> Params:
    """The logical axes of parameters whose layers may be apart: those of the stack without their first."""
    layers = shapes["layers"]
    if not isinstance(layers, tuple):
        return axes
    one: Any = jax.tree.map(lambda names: names[1:], axes["layers"], is_leaf=lambda x: isinstance(x, tuple))
    return {**axes, "layers": (one,) * len(layers)}
