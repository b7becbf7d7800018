"""A text as the counts of its words: the bag of words (Harris 1954), as a sparse matrix.

bag, counts = learn_bag_of_words(["essa casa é bonita", "o carro é rápido"])
bag.vocabulary.words   # ("essa", "casa", "é", "bonita", "o", "carro", "rápido")
counts.toarray()       # [[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 1, 1]]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.classic.occurrences import find_words, number_words
from llm_jax.classic.saved import check_format, read_json, rule_from_json, strings
from llm_jax.classic.vocabulary import Vocabulary, VocabularyRule, select_columns
from llm_jax.classic.words import WordRule
from llm_jax.files import write_json
from llm_jax.storage.paths import path_of
from llm_jax.types import ConfigError, DataError

_RULE = WordRule()
_SELECTION = VocabularyRule()
_FORMAT = 1
_KEYS = {"rule", "documents", "words", "document_counts"}


@dataclasses.dataclass(frozen=True, eq=False)
class BagOfWords:
    """Counts the words of texts.

    Attributes:
        rule: how a text becomes words.
        vocabulary: the words that are counted; others are ignored.
    """

    rule: WordRule
    vocabulary: Vocabulary

    def counts(self, texts: Iterable[str], *, binary: bool = False) -> csr_matrix:
        """Occurrences of each word in each text, int32 [texts, words].

        Args:
            texts: documents.
            binary: 1 for every word that occurs, however often.

        Raises:
            DataError: something that is not a text.
        """
        found = find_words(texts, self.rule, self.vocabulary.ids)
        counts = found.counts(len(self.vocabulary))
        if binary:
            counts.data.fill(1)
        return counts

    def save(self, path: str | Path) -> None:
        """Writes the rule and the vocabulary as a JSON file.

        Raises:
            DataError: the file cannot be written.
        """
        value = {
            "format_version": _FORMAT,
            "rule": dataclasses.asdict(self.rule),
            "documents": self.vocabulary.documents,
            "words": self.vocabulary.words,
            "document_counts": self.vocabulary.document_counts.tolist(),
        }
        write_json(path_of(path), value)

    @staticmethod
    def load(path: str | Path) -> BagOfWords:
        """Reads what ``save`` wrote.

        Raises:
            DataError: the file cannot be read, or is not such a file.
        """
        return _from_json(read_json(path), str(path))


def learn_bag_of_words(
    texts: Iterable[str],
    rule: WordRule = _RULE,
    selection: VocabularyRule = _SELECTION,
    *,
    binary: bool = False,
) -> tuple[BagOfWords, csr_matrix]:
    """Collects the vocabulary of texts and counts their words, in one pass.

    Args:
        texts: documents.
        rule: how a text becomes words.
        selection: which words are kept, and their order.
        binary: 1 for every word that occurs, however often.

    Returns:
        The bag of words, and the counts int32 [texts, words].

    Raises:
        ConfigError: limits that contradict each other.
        DataError: something that is not a text, or no word is left.
    """
    words, found = number_words(texts, rule)
    counts = found.counts(len(words))
    documents = counts.shape[0]
    document_counts = np.bincount(counts.indices, minlength=len(words))
    frequencies = np.bincount(found.ids, minlength=len(words))
    columns = select_columns(words, frequencies, document_counts, documents, selection)
    if len(columns) < len(words) or selection.order != "appearance":
        counts = counts[:, columns]
    if binary:
        counts.data.fill(1)
    kept = Vocabulary(tuple(words[i] for i in columns), document_counts[columns], documents)
    return BagOfWords(rule, kept), counts


def _from_json(value: Any, where: str) -> BagOfWords:
    """The bag of words that ``save`` wrote as ``value``."""
    check_format(value, where, "a saved bag of words", _FORMAT, _KEYS)
    try:
        counts = np.array(value["document_counts"], np.int64)
        words = strings(value["words"])
        vocabulary = Vocabulary(words, counts, int(value["documents"]))
        return BagOfWords(rule_from_json(value["rule"]), vocabulary)
    except (ConfigError, DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where!r} is not an intact bag of words: {error}") from error
