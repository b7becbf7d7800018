"""N-gram models counted from the training shards, as baselines of a trained model: a unigram, a
bigram, and a 5-gram with modified Kneser–Ney smoothing, the best that counting does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from llm_jax.classic.kneser_ney import KENLM_FALLBACK, KneserNey, train_kneser_ney

KNESER_NEY_ORDER = 5
# Counting takes about 120 bytes a token at this order; a larger split is counted in part.
KNESER_NEY_TOKENS = 8_000_000
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


class FiveGram:
    """A 5-gram model with modified Kneser–Ney smoothing.

    Attributes:
        model: the model.
        whole: whether it counts all documents; otherwise those before the first that would make
            more than ``KNESER_NEY_TOKENS`` tokens.
    """

    def __init__(self, documents: Iterable[np.ndarray], vocab_size: int, *, bos: bool) -> None:
        """Args:
        documents: token ids of each.
        vocab_size: number of token ids.
        bos: whether the documents begin with ``<s>``, which then is context alone.
        """
        self._bos = bos
        self.whole = True
        self.model: KneserNey = train_kneser_ney(
            self._counted(documents),
            vocab_size,
            order=KNESER_NEY_ORDER,
            fallback=KENLM_FALLBACK,
        )

    def _counted(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        tokens = 0
        for document in documents:
            tokens += len(document)
            if tokens > KNESER_NEY_TOKENS:
                self.whole = False
                return
            yield self._text(document)

    def _text(self, document: np.ndarray) -> np.ndarray:
        """The document without ``<s>``, in place of which the model has a start of its own."""
        return document[1:] if self._bos else document

    def nll(self, document: np.ndarray) -> np.ndarray:
        """Negative log-probability (nats) of each token after the first, given those before it."""
        scores = -self.model.log_probabilities([self._text(document)])
        return scores if self._bos else scores[1:]
