"""Counts weighted by how rare a word is: tf-idf (Spärck Jones 1972), as in scikit-learn."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.classic.vocabulary import Vocabulary
from llm_jax.types import ConfigError

Norm = Literal["l1", "l2", "none"]


def _check_norm(norm: str) -> None:
    if norm not in ("l1", "l2", "none"):
        raise ConfigError(f"norm is {norm!r}; it must be l1, l2 or none")


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """How counts become weights.

    Attributes:
        idf: multiply by the inverse document frequency, ``ln(n / d) + 1`` of a word that is in d of
            n documents.
        smooth: count one more document that has every word: ``ln((n + 1) / (d + 1)) + 1``.
        sublinear: take ``1 + ln(count)`` for the count.
        norm: scale every row to length 1: l2 (Euclidean) or l1 (sum of absolute values).
    """

    idf: bool = True
    smooth: bool = True
    sublinear: bool = False
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown norm."""
        _check_norm(self.norm)


def tfidf(counts: csr_matrix, vocabulary: Vocabulary, settings: TfIdf = TfIdf()) -> csr_matrix:
    """Weights of counted words, float64 [documents, words].

    Args:
        counts: occurrences [documents, words], of any documents.
        vocabulary: its document counts are what the idf is made from.
        settings: how counts become weights.

    Raises:
        ConfigError: a word is in no document and the idf is not smooth, or ``counts`` has other
            columns.
    """
    if counts.shape[1] != len(vocabulary):
        raise ConfigError(
            f"counts has {counts.shape[1]:,} columns and the vocabulary {len(vocabulary):,} words;"
            " count with the same bag of words"
        )
    weights = csr_matrix(counts, dtype=np.float64, copy=True)
    if settings.sublinear:
        weights.data = np.log(weights.data) + 1
    if settings.idf:
        weights.data *= inverse_document_frequencies(vocabulary, settings.smooth)[weights.indices]
    return normalized_rows(weights, settings.norm)


def inverse_document_frequencies(vocabulary: Vocabulary, smooth: bool = True) -> np.ndarray:
    """The idf of each word, float64 [words]; see ``TfIdf``."""
    extra = int(smooth)
    counted = vocabulary.document_counts + extra
    if not counted.all():
        word = vocabulary.words[int(np.argmin(counted))]
        raise ConfigError(f"the word {word!r} is in no document and has no idf; set smooth=True")
    return np.log((vocabulary.documents + extra) / counted) + 1


def normalized_rows(matrix: csr_matrix, norm: Norm) -> csr_matrix:
    """The matrix with every row scaled to length 1; rows of zeros stay as they are."""
    _check_norm(norm)
    if norm == "none":
        return matrix
    power = 1 if norm == "l1" else 2
    sums = np.asarray(abs(matrix).power(power).sum(axis=1)).ravel()
    lengths = sums if norm == "l1" else np.sqrt(sums)
    lengths[lengths == 0] = 1
    scaled = matrix.astype(np.float64)
    scaled.data /= np.repeat(lengths, np.diff(matrix.indptr))
    return scaled
