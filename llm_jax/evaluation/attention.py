"""The attention of an open run over one text, and figures of each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax import models
from llm_jax.checkpoints.open_run import Run
from llm_jax.decode.inputs import checked_ids
from llm_jax.host_memory import allocating
from llm_jax.models.attention_maps import (
    AttentionMap,
    Part,
    attention_maps,
    head_entropy,
    map_names,
    plain_execution,
)
from llm_jax.models.contract import rows_of
from llm_jax.types import Batch, ConfigError, Params

Ids = Sequence[int]


class HeadFigures(NamedTuple):
    """Means over the queries of one text.

    Attributes:
        part: as in ``AttentionMap``.
        layer: as in ``AttentionMap``.
        head: from 0 on.
        entropy: of a query's weights, in nats.
        norm: of the head's output.
        first: weight of the first key.
        distance: tokens between a query and its keys, by weight; None of cross attention, whose
            keys are of another text.
    """

    part: Part
    layer: int
    head: int
    entropy: float
    norm: float
    first: float
    distance: float | None


def attention_of(run: Run, ids: Ids, reads: Ids = ()) -> list[AttentionMap]:
    """The attention of each layer over one text, in numpy, computed in float32.

    Args:
        run: an open run.
        ids: token ids of the text.
        reads: token ids that the encoder reads, for a model with one.

    Raises:
        ConfigError: a text that is empty or longer than the context, an id that the model does not
            have, or a text for an encoder that the model does not have, or lacks.
    """
    config = run.config.model
    if bool(config.encoder) != bool(len(reads)):
        has = "has" if config.encoder else "has no"
        given = "is" if len(reads) else "is not"
        raise ConfigError(f"the model {has} an encoder, and a text for it {given} given")
    batch = _one_row(ids, "text", config.vocab_size, config.max_length)
    if len(reads):
        read = _one_row(reads, "encoder text", config.vocab_size, config.max_length)
        batch = batch._replace(encoder=read.inputs)
    model = models.build(config, plain_execution())

    names = map_names(config)

    def arrays(params: Params, batch: Batch) -> list[tuple[Array, Array]]:
        return [(one.weights, one.norms) for one in attention_maps(model, params, batch)]

    what = f"the attention of {len(names)} layers over {len(ids):,} tokens"
    with jax.set_mesh(run.mesh), allocating(what, "give a shorter text"):
        found = jax.device_get(jax.jit(arrays)(run.params, batch))
    return [AttentionMap(*name, *pair) for name, pair in zip(names, found)]


def head_figures(maps: Sequence[AttentionMap]) -> list[HeadFigures]:
    """The figures of every head of maps of one row."""
    figures = []
    for one in maps:
        weights = np.asarray(one.weights[0], np.float64)
        entropy = np.asarray(head_entropy(jnp.asarray(one.weights[0]))).mean(-1)
        distance = _distance(weights) if one.part != "cross" else None
        for head in range(weights.shape[0]):
            figures.append(
                HeadFigures(
                    part=one.part,
                    layer=one.layer,
                    head=head,
                    entropy=float(entropy[head]),
                    norm=float(one.norms[0, head].mean()),
                    first=float(weights[head, :, 0].mean()),
                    distance=None if distance is None else float(distance[head]),
                )
            )
    return figures


def _one_row(ids: Ids, name: str, vocab_size: int, max_length: int) -> Batch:
    checked = checked_ids(ids, name, vocab_size)
    if not 1 <= len(checked) <= max_length:
        raise ConfigError(
            f"{name} has {len(checked)} tokens; it must have from 1 to {max_length}"
            " (model.max_length)"
        )
    return rows_of(jnp.asarray(checked)[None], jnp.array([len(checked)]))


def _distance(weights: np.ndarray) -> np.ndarray:
    """Mean distance [N] of keys from their query; weights [N, T, S]."""
    apart = np.abs(np.arange(weights.shape[1])[:, None] - np.arange(weights.shape[2])[None, :])
    total = weights.sum(-1)
    mean = (weights * apart).sum(-1) / np.where(total > 0, total, 1)
    return mean.mean(-1)
