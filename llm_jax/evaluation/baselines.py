"""Unigram and bigram models counted from the training shards, as baselines of a trained model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_DISCOUNT = 0.75


class Bigram:
    """A bigram model smoothed by absolute discounting (Ney, Essen & Kneser 1994).

    The unigram that it is smoothed with adds one to every count.
    """

    def __init__(self, documents: Iterable[np.ndarray], vocab_size: int) -> None:
        """Args:
        documents: token ids of each; the first token only serves as context.
        vocab_size: number of token ids.
        """
        self.vocab_size = vocab_size
        unigrams = np.zeros(vocab_size, np.int64)
        keys = []
        for d in documents:
            unigrams += np.bincount(d[1:], minlength=vocab_size)
            keys.append(d[:-1].astype(np.int64) * vocab_size + d[1:])
        self._pairs, self._counts = np.unique(np.concatenate(keys), return_counts=True)
        context = self._pairs // vocab_size
        self._context_count = np.bincount(context, weights=self._counts, minlength=vocab_size)
        self._context_types = np.bincount(context, minlength=vocab_size)
        self._unigram = (unigrams + 1) / (unigrams.sum() + vocab_size)

    def unigram_nll(self, document: np.ndarray) -> np.ndarray:
        """Negative log-probability (nats) of each token after the first, regardless of context."""
        return -np.log(self._unigram[document[1:]])

    def bigram_nll(self, document: np.ndarray) -> np.ndarray:
        """Negative log-probability (nats) of each token after the first, given the one before."""
        before = document[:-1].astype(np.int64)
        token = document[1:].astype(np.int64)
        key = before * self.vocab_size + token
        at = np.minimum(np.searchsorted(self._pairs, key), len(self._pairs) - 1)
        count = np.where(self._pairs[at] == key, self._counts[at], 0)
        total = np.maximum(self._context_count[before], 1)
        discounted = np.maximum(count - _DISCOUNT, 0) / total
        reserved = np.where(
            self._context_count[before] > 0, _DISCOUNT * self._context_types[before] / total, 1.0
        )
        return -np.log(discounted + reserved * self._unigram[token])
