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
from llm_jax.ops.kv_cache import CrossCache, KVCache
from llm_jax.sharding import constrain, tree_shardings
from llm_jax.types import Params

CACHE_AXES = ("batch", "act_kv_heads", None, None)
# Latents are of all heads.
LATENT_CACHE_AXES = ("batch", None, None)


def compute_params(model: Model, params: Params, *, out_first: bool = False) -> Params:
    """``params`` as decoding reads them: matrices in the compute type, cast once and not once per
    token; norms and routers keep float32 as in training; layers apart where they run unrolled, and
    there ``out_first`` as in ``Model.split_layers``.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1)).k[0].dtype
    return model.split_layers(_cast(params, dtype), out_first=out_first)


def compute_shardings(model: Model, params: Params, mesh: Mesh) -> Params:
    """NamedShardings of ``compute_params``: each parameter lives where it does in training."""
    shapes = jax.eval_shape(partial(compute_params, model), params)
    return tree_shardings(_axes(model.axes, shapes), shapes, mesh)


def place_cache(cache: KVCache) -> KVCache:
    """``cache`` with rows split over the batch axes of the current mesh and heads as attention has
    them; without a mesh, as it is.
    """
    axes = _cache_axes(cache)

    def place(arrays, axes):
        return tuple(constrain(a, *names) for a, names in zip(arrays, axes))

    cross = cache.cross
    if cross is not None and axes.cross is not None:
        cross = CrossCache(
            place(cross.k, axes.cross.k),
            place(cross.v, axes.cross.v),
            constrain(cross.segments, *axes.cross.segments),
        )
    return KVCache(
        place(cache.k, axes.k),
        place(cache.v, axes.v),
        axes.length and constrain(cache.length, *axes.length),
        cross,
    )


def cache_shardings(cache: KVCache, mesh: Mesh) -> KVCache:
    """NamedShardings of what ``place_cache`` gives on ``mesh``."""
    return tree_shardings(_cache_axes(cache), cache, mesh)


def _cache_axes(cache: KVCache) -> KVCache:
    """Logical axes in the place of each array."""

    def of(arrays):
        return tuple(CACHE_AXES if a.ndim == 4 else LATENT_CACHE_AXES for a in arrays)

    cross = (
        None
        if cache.cross is None
        else CrossCache(of(cache.cross.k), of(cache.cross.v), ("batch", None))
    )  # type: ignore[arg-type]
    length = None if cache.length is None else ("batch",)
    return KVCache(of(cache.k), of(cache.v), length, cross)  # type: ignore[arg-type]


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
