"""The words that a bag of words counts: which, in which order, and in how many documents."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from typing import Literal

import numpy as np

from llm_jax.ranges import Count, check_fields
from llm_jax.types import ConfigError, DataError

Order = Literal["appearance", "frequency", "alphabetical"]
_ORDERS: tuple[Order, ...] = ("appearance", "frequency", "alphabetical")


@dataclasses.dataclass(frozen=True)
class VocabularyRule:
    """Which words are counted, and in which order they are columns.

    Attributes:
        order: of first appearance in the texts; by frequency, the most frequent first; or
            alphabetical, by code point. Words of equal frequency are in order of appearance.
        min_documents: words in fewer documents are left out. A whole number is a number of
            documents, a number with a point a share of them: 1 and 1.0 differ.
        max_documents: words in more documents are left out; as ``min_documents``.
        max_size: keeps only so many words, the most frequent ones; None keeps all.
    """

    order: Order = "appearance"
    min_documents: int | float = 1
    max_documents: int | float = 1.0
    max_size: Count | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a setting that cannot be honoured."""
        check_fields(self)
        if self.order not in _ORDERS:
            raise ConfigError(f"order is {self.order!r}; it must be one of {', '.join(_ORDERS)}")
        for name in ("min_documents", "max_documents"):
            _check_documents(name, getattr(self, name))

    def document_range(self, documents: int) -> tuple[float, float]:
        """The least and the largest number of documents that a word may be in, of ``documents``.

        Raises:
            ConfigError: the least exceeds the largest.
        """
        least = _number_of(self.min_documents, documents)
        most = _number_of(self.max_documents, documents)
        if least > most:
            raise ConfigError(
                f"min_documents {self.min_documents!r} is {least:g} of {documents:,} documents, and"
                f" max_documents {self.max_documents!r} is {most:g}; lower min_documents"
            )
        return least, most


def _check_documents(name: str, value: int | float) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    share = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    allowed = (whole and value >= 1) or (share and 0 <= value <= 1)
    if not allowed:
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number of documents from 1, or a share of"
            " them from 0.0 to 1.0"
        )


def _number_of(value: int | float, documents: int) -> float:
    return value if isinstance(value, numbers.Integral) else value * documents


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words by column.

    Attributes:
        words: the word of each column, all different.
        document_counts: int64 [columns], number of documents that have the word.
        documents: number of documents that were counted.
    """

    words: tuple[str, ...]
    document_counts: np.ndarray
    documents: int

    def __post_init__(self) -> None:
        """Raises DataError for words that are there twice, or counts of another length."""
        if len(self.ids) != len(self.words):
            twice = next(word for i, word in enumerate(self.words) if self.ids[word] != i)
            raise DataError(f"the word {twice!r} is in the vocabulary twice; give each word once")
        if self.document_counts.shape != (len(self.words),):
            raise DataError(
                f"document_counts has the shape {self.document_counts.shape} for"
                f" {len(self.words):,} words; give one count for each word"
            )

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The column of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)


def select_columns(
    words: list[str],
    frequencies: np.ndarray,
    document_counts: np.ndarray,
    documents: int,
    rule: VocabularyRule,
) -> np.ndarray:
    """Indices of the words that a rule keeps, in its order.

    Args:
        words: in order of appearance.
        frequencies: [words], occurrences of each.
        document_counts: [words], documents with each.
        documents: number of documents.
        rule: what to keep.

    Raises:
        ConfigError: limits that contradict each other.
        DataError: there is no word, or none is left.
    """
    if not words:
        raise DataError(
            f"the {documents:,} texts have no word; check that they are not empty, and the pattern"
            " of a word"
        )
    least, most = rule.document_range(documents)
    kept = np.flatnonzero((document_counts >= least) & (document_counts <= most))
    if not len(kept):
        raise DataError(
            f"none of {len(words):,} words is in {least:g} to {most:g} of {documents:,} documents;"
            " lower min_documents or raise max_documents"
        )
    by_frequency = kept[np.argsort(-frequencies[kept], kind="stable")]
    if rule.max_size is not None:
        by_frequency = by_frequency[: rule.max_size]
    if rule.order == "frequency":
        return by_frequency
    in_order = np.sort(by_frequency)
    if rule.order == "alphabetical":
        return np.array(sorted(in_order, key=words.__getitem__), np.int64)
    return in_order
