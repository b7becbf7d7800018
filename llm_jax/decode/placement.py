"""Where decoding has its arrays: parameters as in training but in the compute type, the cache over
rows and key/value heads.
"""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh

from llm_jax.models import Model
from llm_jax.ops.cache import Cache
from llm_jax.params.cast import cast_matrices
from llm_jax.params.layout import output_first, split_layers, split_specs
from llm_jax.sharding import constrain, parameter_shardings, tree_shardings
from llm_jax.types import Params


def compute_params(model: Model, params: Params, *, out_first: bool = False) -> Params:
    """``params`` as decoding reads them: matrices in the compute type, cast once and not once for
    every token, and each layer's apart where the layers run unrolled; there also
    ``params.layout.output_first``, where asked for.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1)).dtype
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


def place_cache(cache: Cache) -> Cache:
    """``cache`` over the current mesh as its ``axes`` say: rows over the batch axes, and heads as
    attention has them. Without a mesh, as it is.
    """
    return jax.tree.map(lambda a, axes: constrain(a, *axes), cache, cache.axes)


def cache_shardings(cache: Cache, mesh: Mesh) -> Cache:
    """NamedShardings of what ``place_cache`` gives on ``mesh``."""
    return tree_shardings(cache.axes, cache, mesh)
