"""How well documents are ranked for queries."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np

from llm_jax.types import ConfigError, DataError


class RankingScores(NamedTuple):
    """Scores of each query, float64 [queries], each from 0 to 1.

    Attributes:
        recall: share of the relevant documents among the first k, by k.
        reciprocal_rank: 1 / rank of the first relevant document; its mean is the MRR.
        ndcg: discounted cumulative gain of the first ``depth`` documents, each relevant one
            counting 1 / log2(rank + 1), over the most that is possible (Järvelin & Kekäläinen
            2002).
    """

    recall: dict[int, np.ndarray]
    reciprocal_rank: np.ndarray
    ndcg: np.ndarray


def ranking_scores(
    scores: np.ndarray,
    relevant: Sequence[Set[int]],
    *,
    cutoffs: Sequence[int] = (1, 10),
    depth: int = 10,
) -> RankingScores:
    """Scores of rankings, all documents of which are ranked: the highest score first, of equal
    scores the first document.

    Args:
        scores: of each query and document [queries, documents].
        relevant: numbers of the relevant documents of each query.
        cutoffs: the k of recall.
        depth: documents that nDCG looks at.

    Raises:
        ConfigError: a cutoff or the depth is not positive.
        DataError: shapes that do not fit, scores that are NaN, a query without a relevant document,
            or one that does not exist.
    """
    if min([*cutoffs, depth]) < 1:
        raise ConfigError(f"cutoffs are {list(cutoffs)} and depth {depth}; each must be at least 1")
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or len(table) != len(relevant) or not table.size:
        raise DataError(
            f"scores have the shape {table.shape} for {len(relevant)} queries; they must be"
            " [queries, documents]"
        )
    if np.isnan(table).any():
        raise DataError(f"the scores of query {int(np.isnan(table).any(axis=1).argmax())} are NaN")
    marks = np.zeros(table.shape, bool)
    for number, own in enumerate(relevant):
        if not own or not all(0 <= document < table.shape[1] for document in own):
            raise DataError(
                f"the relevant documents of query {number} are {sorted(own)}; there are"
                f" {table.shape[1]}, of which at least one must be relevant"
            )
        marks[number, list(own)] = True
    order = np.argsort(-table, axis=1, kind="stable")
    ranked = np.take_along_axis(marks, order, axis=1)
    count = marks.sum(axis=1)
    discounts = 1 / np.log2(np.arange(min(depth, table.shape[1])) + 2)
    gains = (ranked[:, :depth] * discounts).sum(axis=1)
    best = np.concatenate([[0], np.cumsum(discounts)])[np.minimum(count, len(discounts))]
    return RankingScores(
        recall={k: ranked[:, :k].sum(axis=1) / count for k in cutoffs},
        reciprocal_rank=1.0 / (ranked.argmax(axis=1) + 1),
        ndcg=gains / best,
    )
