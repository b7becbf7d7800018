"""Models with muP as standard ones that compute the same: what muP multiplies activations with is
folded into parameters, since other programs have no such multipliers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm_jax.config.model import ModelConfig, RMSNormConfig
from llm_jax.config.overrides import override
from llm_jax.config.parametrization import MupConfig
from llm_jax.convert.tensors import Piece

Read = Callable[[Piece], np.ndarray]

_HEAD = "head/kernel"
_EMBEDDING = "embed/embedding"
_QUERIES = ("/query/kernel", "/query/bias")
_QUERY_NORM = "/query_norm/scale"


def folded(model: ModelConfig, read: Read) -> tuple[ModelConfig, Read]:
    """A model without muP that computes the same, and a function that reads its parameters.

    The multiplier of the output logits goes into the output projection, which is thus no longer
    tied to the embedding. That of query·key goes into the queries. A model without muP is returned
    as it is.

    Args:
        model: the model.
        read: reads a piece of a parameter of it.
    """
    if not isinstance(model.parametrization, MupConfig):
        return model, read
    of_logits = 1 / model.growth["embed"]
    standard = override(model, {"parametrization": "standard"})
    of_queries = model.attention_scale / standard.attention_scale
    if of_logits != 1:
        standard = override(standard, {"embedding.tied": False})

    def read_folded(piece: Piece) -> np.ndarray:
        if piece.path == _HEAD:
            return _scaled(_head(model, read, piece), of_logits)
        if piece.path.endswith(_QUERIES) and not model.attention.normalized_axes:
            return _scaled(read(piece), of_queries)
        if piece.path.endswith(_QUERY_NORM) and model.attention.normalized_axes:
            offset = isinstance(model.norm, RMSNormConfig) and model.norm.unit_offset
            return _scaled(read(piece), of_queries, 1.0 if offset else 0.0)
        return read(piece)

    return standard, read_folded


def _head(model: ModelConfig, read: Read, piece: Piece) -> np.ndarray:
    """The output projection [D, V], which may be the embedding."""
    if not model.embedding.tied:
        return read(piece)
    return read(piece._replace(path=_EMBEDDING, shape=piece.shape[::-1])).T


def _scaled(x: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """``x`` of which ``x + offset`` is multiplied by ``factor``, in the type of ``x``."""
    if factor == 1:
        return x
    return ((x.astype(np.float32) + offset) * factor - offset).astype(x.dtype)
