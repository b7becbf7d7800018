"""Phrases: words that occur together more often than by chance become one word (Mikolov et al.
2013, equation 6, with the scale of word2phrase.c).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llm_jax.classic.occurrences import Occurrences
from llm_jax.ranges import Count, NotNegative, Positive, check_fields
from llm_jax.types import ConfigError


@dataclasses.dataclass(frozen=True)
class PhraseRule:
    """Which neighbours are joined.

    The score of the pair a b is (count(a b) - discount) / (count(a) count(b)) times the number of
    words of the texts.

    Attributes:
        discount: keeps pairs of rare words from being phrases.
        threshold: pairs with a higher score are joined.
        passes: how often: 2 makes phrases of up to four words.
        joiner: what is written between the words; no blank, which the text format of vectors cannot
            hold.
    """

    discount: NotNegative = 5.0
    threshold: Positive = 100.0
    passes: Count = 1
    joiner: str = "_"

    def __post_init__(self) -> None:
        """Raises ConfigError for a setting that cannot be honoured."""
        check_fields(self)
        if not self.joiner or self.joiner.split() != [self.joiner]:
            raise ConfigError(f"joiner is {self.joiner!r}; it must have a character, and no blank")


def join_phrases(
    words: list[str], text: Occurrences, rule: PhraseRule
) -> tuple[list[str], Occurrences]:
    """Words and phrases, and where they occur.

    From left to right, a pair is joined where neither word is part of the phrase before it.

    Args:
        words: the word of each id.
        text: where they occur; a phrase does not go from one text to the next.
        rule: which neighbours are joined.
    """
    for _ in range(rule.passes):
        words, text, joined = _join_once(words, text, rule)
        if not joined:
            break
    return words, text


def phrase_scores(
    counts: np.ndarray, pairs: np.ndarray, pair_counts: np.ndarray, discount: float
) -> np.ndarray:
    """float64 [pairs], the score of each pair.

    Args:
        counts: [words], occurrences of each.
        pairs: [pairs, 2], ids of words.
        pair_counts: [pairs].
        discount: see ``PhraseRule``.
    """
    product = counts[pairs[:, 0]].astype(np.float64) * counts[pairs[:, 1]]
    return (pair_counts - discount) / product * counts.sum()


def _join_once(
    words: list[str], text: Occurrences, rule: PhraseRule
) -> tuple[list[str], Occurrences, bool]:
    ids = text.ids.astype(np.int64)
    if len(ids) < 2:
        return words, text, False
    within = np.ones(len(ids) - 1, bool)
    ends = text.ends[1:-1]
    within[ends[(ends > 0) & (ends < len(ids))] - 1] = False
    keys = ids[:-1] * len(words) + ids[1:]
    kinds, kind, pair_counts = np.unique(
        np.where(within, keys, -1), return_inverse=True, return_counts=True
    )
    pairs = np.stack([kinds // len(words), kinds % len(words)], axis=1)
    counts = np.bincount(ids, minlength=len(words))
    scores = phrase_scores(counts, pairs, pair_counts, rule.discount)
    starts = within & (scores > rule.threshold)[kind.reshape(-1)]
    starts = _alternate(starts)
    chosen = np.flatnonzero(starts)
    if not len(chosen):
        return words, text, False
    return (*_replaced(words, text, chosen, rule.joiner), True)


def _alternate(starts: np.ndarray) -> np.ndarray:
    """Every other place of each run of True, from its first."""
    places = np.arange(len(starts))
    begins = starts & ~np.concatenate([[False], starts[:-1]])
    first = np.maximum.accumulate(np.where(begins, places, 0))
    return starts & ((places - first) % 2 == 0)


def _replaced(
    words: list[str], text: Occurrences, chosen: np.ndarray, joiner: str
) -> tuple[list[str], Occurrences]:
    """The words at ``chosen`` joined with those after them."""
    numbers = {word: i for i, word in enumerate(words)}
    words = list(words)
    pairs, kind = np.unique(
        np.stack([text.ids[chosen], text.ids[chosen + 1]], axis=1), axis=0, return_inverse=True
    )
    new = np.zeros(len(pairs), np.int32)
    for i, (first, second) in enumerate(pairs.tolist()):
        phrase = f"{words[first]}{joiner}{words[second]}"
        if phrase not in numbers:
            numbers[phrase] = len(words)
            words.append(phrase)
        new[i] = numbers[phrase]
    ids = text.ids.copy()
    ids[chosen] = new[kind.reshape(-1)]
    kept = np.ones(len(ids), bool)
    kept[chosen + 1] = False
    before = np.concatenate([[0], np.cumsum(kept)])
    return words, Occurrences(ids[kept], before[text.ends])
