"""Where decoding has its arrays: parameters as in training but in the compute type, the cache over
rows and key/value heads.
"""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh

from llm_jax.models import Model
from llm_jax.ops.kv_cache import CrossCache, KVCache
from llm_jax.params.cast import cast_matrices
from llm_jax.params.layout import output_first, split_layers, split_specs
from llm_jax.sharding import constrain, parameter_shardings, tree_shardings
from llm_jax.types import Params

CACHE_AXES = ("batch", "act_kv_heads", None, None)
# Latents are of all heads.
LATENT_CACHE_AXES = ("batch", None, None)


def compute_params(model: Model, params: Params, *, out_first: bool = False) -> Params:
    """``params`` as decoding reads them: matrices in the compute type, cast once and not once for
    every token, and each layer's apart where the layers run unrolled; there also
    ``params.layout.output_first``, where asked for.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1)).k[0].dtype
    params = cast_matrices(model.specs, params, dtype)
    if not model.unrolled:
        return params
    params = split_layers(params)
    if not out_first:
        return params
    return output_first(split_specs(model.specs, params), params)


def compute_shardings(model: Model, params: Params, mesh: Mesh) -> Params:
    """NamedShardings of ``compute_params``: each parameter lives where it does in training."""
    shapes = jax.eval_shape(partial(compute_params, model), params)
    return parameter_shardings(split_specs(model.specs, shapes), shapes, mesh)


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
