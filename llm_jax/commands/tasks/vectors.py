"""Vectors of the texts of a task, and what they are compared by."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from llm_jax.api.load import load
from llm_jax.checkpoints.open_run import Run
from llm_jax.commands.tasks.texts import Long, encode
from llm_jax.config import MeshConfig
from llm_jax.config.data import ContrastiveConfig
from llm_jax.decode.embed import Pooling, vectors_of_rows
from llm_jax.evaluation.significance.sums import means
from llm_jax.evaluation.tasks.measures import Figures, figure
from llm_jax.evaluation.text_metrics.ranking import ranking_scores
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError

AnyPooling = Literal["auto", "mean", "first", "last", "model"]


class Embedder(NamedTuple):
    """What makes vectors of texts.

    Attributes:
        run: the model.
        tokenizer: of the model.
        pooling: how.
        batch_size: texts computed together.
    """

    run: Run
    tokenizer: Tokenizer
    pooling: Pooling
    batch_size: int

    def vectors(
        self, texts: Sequence[str], wheres: Sequence[str], *, long: Long
    ) -> tuple[np.ndarray, int]:
        """The vectors of length 1 of texts, and how many of them were cut.

        Raises:
            ConfigError: ``long`` is skip.
            DataError: a text that is longer than the context, where long is refuse.
        """
        if long == "skip":
            raise ConfigError(
                "long is 'skip', and each text needs a vector; use refuse or truncate"
            )
        most = self.run.config.model.max_length
        reader = self.tokenizer.reader or self.tokenizer
        found = encode(reader, [(text,) for text in texts], wheres, most=most, long=long)
        made = vectors_of_rows(
            self.run,
            texts,
            found.rows,
            normalize=True,
            batch_size=self.batch_size,
            pooling=self.pooling,
        )
        return made, found.long


def open_embedder(model: Path, step: int | None, pooling: AnyPooling, batch_size: int) -> Embedder:
    """Opens a model for vectors. Pooling auto is that which the model was trained with; of one that
    was not trained for vectors here it is the mean.
    """
    lm = load(model, step, mesh=MeshConfig())
    return Embedder(lm.run, lm.tokenizer, pooling_of(lm.run, pooling), batch_size)


def pooling_of(run: Run, pooling: AnyPooling) -> Pooling:
    """The pooling of a model's vectors; see ``open_embedder``."""
    if pooling != "auto":
        return pooling
    objective = run.config.data.objective
    return objective.pooling if isinstance(objective, ContrastiveConfig) else "mean"


def ranking_figures(scores: np.ndarray, relevant: Sequence[Set[int]]) -> Figures:
    """Recall at 1 and 10, MRR and nDCG at 10, with intervals over queries."""
    found = ranking_scores(scores, relevant)
    figures = {f"recall@{k}": figure(means(values)) for k, values in found.recall.items()}
    figures["mrr"] = figure(means(found.reciprocal_rank))
    figures["ndcg@10"] = figure(means(found.ndcg))
    return figures
