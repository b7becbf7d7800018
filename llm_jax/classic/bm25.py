"""Okapi BM25: how well documents fit the words of a query (Robertson & Zaragoza 2009, with the idf
of Lucene, which is never negative).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.classic.bag_of_words import BagOfWords, learn_bag_of_words
from llm_jax.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Bm25:
    """Documents that queries are looked up in.

    Attributes:
        bag: their words.
        weights: float64 [documents, words], what an occurrence of a word in a query adds.
    """

    bag: BagOfWords
    weights: csr_matrix

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float64 [queries, documents]; words that no document has count nothing."""
        return (self.bag.counts(queries).astype(np.float64) @ self.weights.T).toarray()


def learn_bm25(documents: Sequence[str], k1: float = 1.2, b: float = 0.75) -> Bm25:
    """BM25 of documents.

    The weight of a word that a document of l words has f times, of n documents d of which have it,
    is ``ln(1 + (n - d + 0.5) / (d + 0.5)) · f · (k1 + 1) / (f + k1 · (1 - b + b · l / mean l))``.

    Args:
        documents: at least one with a word.
        k1: how soon further occurrences stop counting, at least 0.
        b: how far the length of a document counts, from 0 to 1.

    Raises:
        ConfigError: k1 or b is out of range.
        DataError: no document has a word.
    """
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ConfigError(f"k1 is {k1} and b {b}; k1 must be at least 0, and b from 0 to 1")
    bag, counts = learn_bag_of_words(documents)
    weights = csr_matrix(counts, dtype=np.float64, copy=True)
    lengths = np.asarray(weights.sum(axis=1)).ravel()
    having = bag.vocabulary.document_counts
    idf = np.log1p((len(lengths) - having + 0.5) / (having + 0.5))
    row = np.repeat(np.arange(len(lengths)), np.diff(weights.indptr))
    often = weights.data
    short = k1 * (1 - b + b * lengths[row] / lengths.mean())
    weights.data = idf[weights.indices] * often * (k1 + 1) / (often + short)
    return Bm25(bag, weights)
