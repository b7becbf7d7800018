"""Contamination: n-grams of evaluation texts that occur in a training corpus.

The rule of 13 words is that of GPT-3 (Brown et al. 2020, appendix C); a share of 8-grams is that of
PaLM (Chowdhery et al. 2022).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.types import ConfigError, DataError

_UNSEEN = -1
# Odd, so that multiplication by it loses nothing modulo 2**64 (Knuth's multiplier).
_MULTIPLIER = 6364136223846793005


class TextOverlap(NamedTuple):
    """What of one evaluation text occurs in the corpus.

    Attributes:
        ngrams: number of its n-grams; 0 of a text shorter than n.
        found: how many of these occur in the corpus.
        covered: share of its tokens that are part of such an n-gram.
    """

    ngrams: int
    found: int
    covered: float


class SetContamination(NamedTuple):
    """Contamination of one evaluation set.

    Attributes:
        rate: share of contaminated texts among those that have n-grams; None if none has.
        contaminated: their indices in the set.
        texts: texts that have at least one n-gram.
        too_short: texts shorter than n: nothing can be said of them.
        covered: share of the tokens of those texts that are part of an n-gram of the corpus.
        overlaps: of each text, in order.
    """

    rate: float | None
    contaminated: list[int]
    texts: int
    too_short: int
    covered: float | None
    overlaps: list[TextOverlap]


class ContaminationReport(NamedTuple):
    """Contamination of evaluation sets by a corpus.

    Attributes:
        sets: by name.
        documents: number of documents of the corpus.
        tokens: number of their tokens.
        signature: the rule: n and the share from which on a text is contaminated.
    """

    sets: dict[str, SetContamination]
    documents: int
    tokens: int
    signature: str


def contamination(
    sets: Mapping[str, Sequence[Sequence[Hashable]]],
    corpus: Iterable[Sequence[Hashable] | np.ndarray],
    *,
    n: int = 13,
    share: float = 0.0,
) -> ContaminationReport:
    """Which evaluation texts share n-grams with a corpus that is read once, document by document.

    Memory grows with the evaluation texts, not with the corpus. Texts and corpus are made of the
    same kind of token: words, as ``unicode_words`` gives them without case and punctuation, or
    token ids of one tokenizer. With token ids, a text that stands in other surroundings may be
    split in another way at its ends. No n-gram reaches over the end of a document.

    Args:
        sets: tokens of the texts of each evaluation set.
        corpus: tokens of each document.
        n: tokens of an n-gram.
        share: a text is contaminated where more than this share of its n-grams occurs; 0 asks for
            one, and 0.7 with n=8 is PaLM's rule.

    Raises:
        ConfigError: an option is out of range.
        DataError: there are no evaluation texts.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; it expects at least 1")
    if not 0 <= share < 1:
        raise ConfigError(f"share is {share}; it expects 0 to less than 1")
    if not any(len(texts) for texts in sets.values()):
        raise DataError("there are no evaluation texts to look for")
    index = _Index([text for texts in sets.values() for text in texts], n)
    documents = 0
    tokens = 0
    for document in corpus:
        documents += 1
        tokens += len(document)
        index.look_up(document)
    overlaps = iter(index.overlaps())
    by_name = {
        name: _set_contamination([next(overlaps) for _ in texts], texts, share)
        for name, texts in sets.items()
    }
    return ContaminationReport(by_name, documents, tokens, f"n:{n}|share:>{share:g}")


def _set_contamination(
    overlaps: list[TextOverlap], texts: Sequence[Sequence[Hashable]], share: float
) -> SetContamination:
    measured = [at for at, each in enumerate(overlaps) if each.ngrams]
    contaminated = [at for at in measured if overlaps[at].found > share * overlaps[at].ngrams]
    sizes = np.array([len(texts[at]) for at in measured], float)
    covered = np.array([overlaps[at].covered for at in measured])
    return SetContamination(
        rate=len(contaminated) / len(measured) if measured else None,
        contaminated=contaminated,
        texts=len(measured),
        too_short=len(overlaps) - len(measured),
        covered=float((sizes * covered).sum() / sizes.sum()) if measured else None,
        overlaps=overlaps,
    )


class _Index:
    """The n-grams of evaluation texts, and which of them have been seen."""

    def __init__(self, texts: Sequence[Sequence[Hashable]], n: int) -> None:
        self.n = n
        self._number: dict[Hashable, int] = {}
        self._texts = [self._numbered(text, grow=True) for text in texts]
        grams = [_windows(text, n) for text in self._texts]
        every = np.concatenate(grams) if grams else np.zeros((0, n), np.int64)
        # Each different n-gram once, and which of them each n-gram of the texts is.
        self._grams, self._which = np.unique(every, axis=0, return_inverse=True)
        self._which = self._which.reshape(-1)
        hashes = _hash(self._grams)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        # Almost always 1.
        self._most_of_one_hash = int(np.unique(hashes, return_counts=True)[1].max(initial=0))
        self._seen = np.zeros(len(self._grams), bool)

    def look_up(self, document: Sequence[Hashable] | np.ndarray) -> None:
        """Marks the n-grams that the document has."""
        numbers = self._numbered(document, grow=False)
        windows = _windows(numbers, self.n)
        # No n-gram of the texts has a token that no text has.
        windows = windows[(windows != _UNSEEN).all(axis=1)]
        if not len(windows) or not len(self._hashes):
            return
        hashes = _hash(windows)
        at = np.searchsorted(self._hashes, hashes, side="left")
        for step in range(self._most_of_one_hash):
            place = np.minimum(at + step, len(self._hashes) - 1)
            gram = self._order[place]
            # Equal hashes are compared token by token.
            equal = (self._grams[gram] == windows).all(axis=1)
            self._seen[gram[equal]] = True

    def overlaps(self) -> list[TextOverlap]:
        """The overlap of each text with all documents so far."""
        found = []
        start = 0
        for text in self._texts:
            count = max(0, len(text) - self.n + 1)
            seen = self._seen[self._which[start : start + count]]
            start += count
            inside = np.zeros(len(text), bool)
            for at in np.flatnonzero(seen):
                inside[at : at + self.n] = True
            covered = float(inside.mean()) if count else 0.0
            found.append(TextOverlap(count, int(seen.sum()), covered))
        return found

    def _numbered(self, tokens: Sequence[Hashable] | np.ndarray, grow: bool) -> np.ndarray:
        values = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
        if grow:
            numbers = [self._number.setdefault(token, len(self._number)) for token in values]
        else:
            numbers = [self._number.get(token, _UNSEEN) for token in values]
        return np.array(numbers, np.int64)


def _windows(numbers: np.ndarray, n: int) -> np.ndarray:
    """Every n-gram: [n-grams, n]."""
    if len(numbers) < n:
        return np.zeros((0, n), np.int64)
    return np.lib.stride_tricks.sliding_window_view(numbers, n)


def _hash(grams: np.ndarray) -> np.ndarray:
    """A polynomial of each n-gram modulo 2**64."""
    found = np.zeros(len(grams), np.uint64)
    for column in grams.T:
        found = found * np.uint64(_MULTIPLIER) + column.astype(np.uint64) + np.uint64(1)
    return found
