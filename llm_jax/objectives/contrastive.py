"""Vectors of texts: each text of a pair finds the other among those of the whole batch (InfoNCE;
van den Oord et al. 2018, with in-batch negatives as in Henderson et al. 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_jax.config import Config, DataConfig
from llm_jax.config.data import ContrastiveConfig
from llm_jax.objectives.contract import Field, Loss, Objective, Sums
from llm_jax.objectives.examples import AsExamples, Scored, sums_of
from llm_jax.objectives.token_batches import random_tokens, token_fields
from llm_jax.types import Array, Batch, Params

if TYPE_CHECKING:
    from llm_jax.models import Model
    from llm_jax.tokenizers.tokenizer import Tokenizer


def pair_fields(config: Config) -> Batch:
    """Fields of a batch [B, T] whose rows have two texts, with an id for each."""
    return token_fields(config)._replace(extras={"text_ids": Field((config.data.batch_size, 2))})


def random_text_pairs(config: Config) -> Batch:
    """A batch [B, T] of random tokens: each half of a row is a text of its own."""
    batch = random_tokens(config)
    rows, length = batch.targets.shape
    index = np.arange(length, dtype=np.int32)
    second = index >= (length + 1) // 2
    segments = np.broadcast_to((1 + second).astype(np.int32), (rows, length))
    positions = np.broadcast_to(index - second * ((length + 1) // 2), (rows, length))
    inputs = batch.inputs._replace(segment_ids=segments, positions=positions.astype(np.int32))
    ids = np.arange(2 * rows, dtype=np.int32).reshape(rows, 2)
    return batch._replace(inputs=inputs, extras={"text_ids": ids})


def make_text_pairs(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> AsExamples:
    """Rows of a folder of examples; the arguments play no part."""
    return AsExamples("contrastive")


def make_contrastive_loss(model: Model, config: Config, chunk: int) -> Loss:
    """``info_nce`` of the vectors of the texts of a batch, over all of its rows.

    The metrics are loss (nats a pair), accuracy (the text's own partner is the nearest), examples,
    tokens and the model's own terms, each a mean over all places of rows. ``chunk`` plays no part.
    """
    import jax.numpy as jnp

    from llm_jax.models import row_vectors
    from llm_jax.params.select import merge

    objective = config.data.objective
    assert isinstance(objective, ContrastiveConfig)

    def loss(trainable: Params, frozen: Params, batch: Batch, key: Array | None) -> Sums:
        params = merge(trainable, frozen)
        out = model.apply(params, batch, dropout_key=key)
        segments = batch.inputs.segment_ids
        first, second = (
            row_vectors(model.config, params, out.hidden, segments == n, objective.pooling)
            for n in (1, 2)
        )
        assert batch.extras is not None
        counted = jnp.any(segments == 2, axis=1)
        ids = batch.extras["text_ids"]
        scored = info_nce(first, second, ids, counted, objective)
        return sums_of(jnp.sum(scored.nll), scored, out, batch, share=1 / segments.shape[1])

    return loss


def info_nce(
    first: Array, second: Array, ids: Array, counted: Array, objective: ContrastiveConfig
) -> Scored:
    """The negative log-likelihood, in nats, of each pair's second text among those of all pairs,
    by the cosine of its vector with that of the first.

    A text that is equal to the second or the first text of the pair is no negative of it.

    Args:
        first: [B, D], vectors of the first texts.
        second: [B, D].
        ids: int [B, 2], equal for texts that are equal.
        counted: bool [B], False for rows without a pair.
        objective: its temperature, and whether the mean with the other direction is taken.

    Returns:
        Arrays [B].
    """
    import jax
    import jax.numpy as jnp

    own = jnp.eye(len(first), dtype=bool)
    cosines = _normalized(first) @ _normalized(second).T / objective.temperature

    def of(scores: Array, partners: Array, askers: Array) -> tuple[Array, Array]:
        same = (partners[:, None] == partners[None]) | (askers[:, None] == partners[None])
        among = jnp.where(own | (counted[None] & ~same), scores, -jnp.inf)
        target = jnp.diagonal(scores)
        others = jnp.max(jnp.where(own, -jnp.inf, among), axis=1)
        return jax.nn.logsumexp(among, axis=1) - target, target > others

    nll, right = of(cosines, ids[:, 1], ids[:, 0])
    if objective.symmetric:
        back, _ = of(cosines.T, ids[:, 0], ids[:, 1])
        nll = (nll + back) / 2
    weights = counted.astype(jnp.float32)
    return Scored(jnp.where(counted, nll, 0.0), weights, right & counted, counted)


def _normalized(vectors: Array) -> Array:
    """Vectors of length 1 in float32; 0 stays 0."""
    import jax
    import jax.numpy as jnp

    wide = vectors.astype(jnp.float32)
    squares = jnp.sum(wide * wide, axis=1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


CONTRASTIVE = Objective(
    name="contrastive",
    fields=pair_fields,
    example=random_text_pairs,
    make_transform=make_text_pairs,
    make_loss=make_contrastive_loss,
    evaluation=("loss", "accuracy"),
    unit="pairs",
)
