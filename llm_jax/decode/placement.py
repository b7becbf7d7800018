"""Where decoding has its arrays: parameters as in training but in the compute type, the cache over
rows and key/value heads.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
from jax.sharding import Mesh

from llm_jax.config import CacheConfig
from llm_jax.models import Model
from llm_jax.models.execution import Layers
from llm_jax.ops.cache import Cache
from llm_jax.ops.platform import platform
from llm_jax.params.cast import cast_matrices
from llm_jax.params.layout import output_first, split_layers, split_specs
from llm_jax.sharding import constrain, parameter_shardings, tree_shardings
from llm_jax.types import Params

Layout = Literal["stacked", "split", "output_first"]
"""How decoding has the parameters of layers: stacked on L as on disk, each layer's apart
(``params.layout.split_layers``), or apart with outputs first (``params.layout.output_first``)."""


def layout_of(layers: Layers, mesh: Mesh | None) -> Layout:
    """The layout of parameters that decodes fastest.

    A loop over stacked layers would stack their caches and take them apart in every step, which
    moves the whole cache several times (``llm-jax plan --decode`` counts it).

    Args:
        layers: as ``ExecutionConfig.layers``; "auto" has each layer's apart.
        mesh: the devices; None for one device.
    """
    if layers == "scan":
        return "stacked"
    return "output_first" if mesh is None and platform() == "cpu" else "split"


def compute_params(model: Model, params: Params, layout: Layout) -> Params:
    """``params`` as decoding reads them: in ``layout``, with matrices in the compute type, cast
    once and not once for every token.
    """
    dtype = jax.eval_shape(partial(model.init_cache, 1, 1, kind=CacheConfig())).dtype
    params = cast_matrices(model.specs, params, dtype)
    if layout == "stacked":
        return params
    params = split_layers(params)
    if layout == "split":
        return params
    return output_first(split_specs(model.specs, params), params)


def compute_shardings(model: Model, params: Params, mesh: Mesh, layout: Layout) -> Params:
    """NamedShardings of ``compute_params``: each parameter lives where it does in training.

    Args:
        model: the model.
        params: its parameters, as they are stored.
        mesh: the devices.
        layout: "stacked" or "split".
    """
    shapes = jax.eval_shape(partial(compute_params, model, layout=layout), params)
    return parameter_shardings(split_specs(model.specs, shapes), shapes, mesh)


def place_cache(cache: Cache) -> Cache:
    """``cache`` over the current mesh as its ``axes`` say: rows over the batch axes, and heads as
    attention has them. Without a mesh, as it is.
    """
    return jax.tree.map(lambda a, axes: constrain(a, *axes), cache, cache.axes)


def cache_shardings(cache: Cache, mesh: Mesh) -> Cache:
    """NamedShardings of what ``place_cache`` gives on ``mesh``."""
    return tree_shardings(cache.axes, cache, mesh)
