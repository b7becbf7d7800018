"""Rankings and rank correlation, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.classic.rank_correlation import spearman
from llm_jax.evaluation.text_metrics.ranking import ranking_scores
from llm_jax.types import ConfigError, DataError


def test_rankings_by_hand():
    # Documents by rank: query 0 has 2 0 1, query 1 has 0 1 2 since equal scores keep their order.
    scores = np.array([[0.5, 0.1, 0.9], [0.3, 0.3, 0.3]])
    found = ranking_scores(scores, [{0, 1}, {2}], cutoffs=(1, 2), depth=2)
    np.testing.assert_allclose(found.recall[1], [0, 0])
    np.testing.assert_allclose(found.recall[2], [0.5, 0])
    np.testing.assert_allclose(found.reciprocal_rank, [1 / 2, 1 / 3])
    second = 1 / np.log2(3)
    np.testing.assert_allclose(found.ndcg, [second / (1 + second), 0])
    whole = ranking_scores(scores, [{0, 1}, {2}], cutoffs=(3,))
    np.testing.assert_allclose(whole.recall[3], [1, 1])
    np.testing.assert_allclose(whole.ndcg, [(second + 0.5) / (1 + second), 0.5])


def test_equal_values_have_the_mean_of_their_ranks():
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    # Ranks 1 2.5 2.5 4 and 1 2 3 4: covariance 4.5 over sqrt(4.5 · 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman([3, 2, 1], [1, 5, 9]) == -1
    assert np.isnan(spearman([1, 1], [1, 2]))


def test_what_cannot_be_ranked_is_named():
    scores = np.zeros((1, 2))
    for relevant in (set(), {2}, {-1}):
        with pytest.raises(DataError, match="relevant documents of query 0 are .* there are 2"):
            ranking_scores(scores, [relevant])
    with pytest.raises(DataError, match="scores of query 1 are NaN"):
        ranking_scores(np.array([[0.0], [np.nan]]), [{0}, {0}])
    with pytest.raises(DataError, match="for 2 queries"):
        ranking_scores(scores, [{0}, {0}])
    with pytest.raises(ConfigError, match="each must be at least 1"):
        ranking_scores(scores, [{0}], cutoffs=(0,))
    with pytest.raises(DataError, match="two or more of each"):
        spearman([1], [1])
