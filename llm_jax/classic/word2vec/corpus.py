"""Texts as the ids of a vocabulary of words with counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llm_jax.classic.occurrences import Occurrences, number_words
from llm_jax.classic.word2vec.phrases import PhraseRule, join_phrases
from llm_jax.classic.words import WordRule
from llm_jax.types import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class WordCounts:
    """A vocabulary, the most frequent word first.

    Attributes:
        words: all different.
        counts: int64 [V], occurrences of each.
    """

    words: tuple[str, ...]
    counts: np.ndarray

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)


class Corpus(NamedTuple):
    """Texts to learn from.

    Attributes:
        vocabulary: words that are learnt.
        text: where they occur; other words are left out.
        total: words of the texts with those that are left out.
    """

    vocabulary: WordCounts
    text: Occurrences
    total: int


def read_corpus(
    texts: Iterable[str],
    rule: WordRule,
    *,
    min_count: int = 5,
    max_size: int | None = None,
    phrases: PhraseRule | None = None,
) -> Corpus:
    """Counts words, and numbers the frequent ones.

    Words of equal counts are in order of appearance.

    Args:
        texts: documents; no context goes from one to the next.
        rule: how a text becomes words.
        min_count: words with fewer occurrences are left out.
        max_size: keeps only so many words; None keeps all.
        phrases: which words are joined first; None joins none.

    Raises:
        ConfigError: ``rule`` makes runs of words, which have no order.
        DataError: texts that are no strings or have no words, or none that is frequent enough.
    """
    if rule.ngrams != (1, 1):
        raise ConfigError(
            f"ngrams is {rule.ngrams}; word2vec needs the words of a text in order,"
            " so use (1, 1), and phrases for runs of words"
        )
    words, text = number_words(texts, rule)
    if phrases is not None:
        words, text = join_phrases(words, text, phrases)
    counts = np.bincount(text.ids, minlength=len(words))
    kept = np.argsort(-counts, kind="stable")[:max_size]
    kept = kept[counts[kept] >= min_count]
    if not len(kept):
        raise DataError(_nothing_left(words, counts, len(text.ends) - 1, min_count))
    numbers = np.full(len(words), -1, np.int32)
    numbers[kept] = np.arange(len(kept), dtype=np.int32)
    vocabulary = WordCounts(tuple(words[i] for i in kept), counts[kept].astype(np.int64))
    return Corpus(vocabulary, _renumbered(text, numbers), len(text.ids))


def _renumbered(text: Occurrences, numbers: np.ndarray) -> Occurrences:
    """``text`` with the ids ``numbers``; words of number -1 are left out."""
    ids = numbers[text.ids]
    known = ids >= 0
    before = np.concatenate([[0], np.cumsum(known)])
    return Occurrences(ids[known], before[text.ends])


def _nothing_left(words: list[str], counts: np.ndarray, texts: int, min_count: int) -> str:
    if not words:
        return (
            f"the {texts:,} texts have no word; check that they are not empty, and the pattern of a"
            " word"
        )
    top = int(counts.argmax())
    return (
        f"none of {len(words):,} words occurs {min_count} times; the most frequent, {words[top]!r},"
        f" occurs {counts[top]} times, so lower min_count"
    )
