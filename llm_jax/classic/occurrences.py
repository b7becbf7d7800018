"""The words of many texts as one flat array of ids, and the sparse matrix of their counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.classic.words import WordRule, checked_texts
from llm_jax.types import DataError


class Occurrences(NamedTuple):
    """Every word of every text, one text after the other.

    Attributes:
        ids: int32 [occurrences], the word's id.
        ends: int64 [texts + 1], where each text ends in ``ids``; the first is 0.
    """

    ids: np.ndarray
    ends: np.ndarray

    def counts(self, columns: int, values: np.ndarray | None = None) -> csr_matrix:
        """Sums over equal ids of a text, int32 [texts, columns].

        Args:
            columns: number of ids.
            values: int32 [occurrences], what each adds; None is 1.
        """
        if values is None:
            values = np.ones(len(self.ids), np.int32)
        shape = (len(self.ends) - 1, columns)
        # Summing sorts the ids where they lie.
        counts = csr_matrix((values, self.ids.copy(), self.ends), shape=shape)
        counts.sum_duplicates()
        return counts


def number_words(texts: Iterable[str], rule: WordRule) -> tuple[list[str], Occurrences]:
    """The different words of texts in order of first appearance, and where they occur.

    Raises:
        DataError: something that is not a text, or there is none.
    """
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    get = vocabulary.__getitem__
    found = _occurrences(texts, rule, lambda words: map(get, words))
    return list(vocabulary), found


def find_words(texts: Iterable[str], rule: WordRule, ids: dict[str, int]) -> Occurrences:
    """Where the words of ``ids`` occur in texts; other words are left out.

    Raises:
        DataError: something that is not a text, or there is none.
    """
    get = ids.get
    found = _occurrences(texts, rule, lambda words: map(get, words, repeat(-1)))
    known = found.ids >= 0
    known_before = np.concatenate([[0], np.cumsum(known)])
    return Occurrences(found.ids[known], known_before[found.ends])


def _occurrences(
    texts: Iterable[str], rule: WordRule, lookup: Callable[[list[str]], Iterable[int]]
) -> Occurrences:
    analyze = rule.analyzer()
    pieces = []
    ends = [0]
    for text in checked_texts(texts):
        words = analyze(text)
        pieces.append(np.fromiter(lookup(words), np.int32, len(words)))
        ends.append(ends[-1] + len(words))
    if not pieces:
        raise DataError("texts is empty; pass at least one document")
    return Occurrences(np.concatenate(pieces), np.array(ends))
