"""An n-gram language model with interpolated modified Kneser–Ney smoothing.

Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling", section
4.1.6 and equations 23 to 26; conventions at the start of documents and for unknown tokens as in
KenLM (Heafield, Pouzyrevsky, Clark & Koehn 2013). With c the count of an n-gram,

    p(w | context) = (c(context w) - D(c)) / Σ c(context ·) + γ(context) p(w | shorter context)

An n-gram of the highest order, or one that starts a document, counts how often it occurs; every
other one in how many different tokens precede it. D takes one of three values for each order: for
counts of 1, of 2, and of 3 and more. γ is what makes the probabilities of a context sum to 1. The
shortest context backs off to equal probabilities of all tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from llm_jax.classic.ngram_counts import (
    NgramCounts,
    TokenStream,
    count_ngrams,
    find_keys,
    token_stream,
)
from llm_jax.ranges import Count, checked
from llm_jax.types import ConfigError, DataError

Discounts = tuple[float, float, float]
KENLM_FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Those of KenLM's option discount_fallback: for corpora too small to estimate discounts from."""


class NgramTable(NamedTuple):
    """What is known of the n-grams of one order.

    Attributes:
        keys: int64 [n-grams], sorted, as in ``ngram_counts``; of unigrams 0, 1, ….
        probability: float64 [n-grams], of the last token after the others.
        backoff: float64 [n-grams], γ of the n-gram as a context; 1 where nothing follows it.
    """

    keys: np.ndarray
    probability: np.ndarray
    backoff: np.ndarray


class KneserNey(NamedTuple):
    """A trained model.

    Attributes:
        vocab_size: number of token ids.
        tables: of order 1, 2, ….
        discounts: of order 1, 2, …: for counts of 1, of 2, and of 3 and more.
        fallback_orders: the orders whose discounts are not estimated but those given as fallback.
        train_tokens: number of tokens that were counted, without the starts of documents.
    """

    vocab_size: int
    tables: tuple[NgramTable, ...]
    discounts: tuple[Discounts, ...]
    fallback_orders: tuple[int, ...]
    train_tokens: int

    @property
    def order(self) -> int:
        """Length of the longest n-gram; a token is predicted from one less."""
        return len(self.tables)

    def log_probabilities(self, documents: Iterable[np.ndarray]) -> np.ndarray:
        """ln p of every token after those before it in its document.

        Args:
            documents: token ids of each, from its first token; the start that comes before it is
                part of the model.

        Returns:
            float64 [tokens], one document after the other.

        Raises:
            DataError: an id that the vocabulary lacks.
        """
        stream = token_stream(documents, self.vocab_size)
        probability = self.tables[0].probability[stream.ids]
        numbers = stream.ids
        begins = np.arange(len(stream.ids))
        for n in range(2, self.order + 1):
            begins = begins[stream.left[begins] >= n]
            # A context that was never seen says nothing, nor does a longer one.
            begins = begins[numbers[begins] >= 0]
            token_at = begins + n - 1
            context = numbers[begins]
            key = context * stream.base + stream.ids[token_at]
            found = find_keys(self.tables[n - 1].keys, key)
            backed_off = self.tables[n - 2].backoff[context] * probability[token_at]
            known = self.tables[n - 1].probability
            probability[token_at] = backed_off
            probability[token_at[found >= 0]] = known[found[found >= 0]]
            numbers = np.full(len(stream.ids), -1)
            numbers[begins] = found
        return np.log(probability[stream.ids != stream.start])

    def distribution(self, context: np.ndarray, *, at_start: bool = True) -> np.ndarray:
        """Probabilities of every token id after a context, float64 [V].

        Args:
            context: token ids, the nearest last.
            at_start: whether the document starts with the context.

        Raises:
            DataError: an id that the vocabulary lacks.
        """
        stream = token_stream([np.asarray(context, np.int64)], self.vocab_size)
        tokens = stream.ids if at_start else stream.ids[1:]
        probability = self.tables[0].probability[: self.vocab_size].copy()
        for n in range(2, min(self.order, len(tokens) + 1) + 1):
            number = self._number(tokens[len(tokens) - n + 1 :], stream.base)
            if number < 0:
                break
            table = self.tables[n - 1]
            first, end = np.searchsorted(
                table.keys, [number * stream.base, (number + 1) * stream.base]
            )
            probability *= self.tables[n - 2].backoff[number]
            follows = table.keys[first:end] % stream.base
            probability[follows] = table.probability[first:end]
        return probability

    def _number(self, ngram: np.ndarray, base: int) -> int:
        """The number of an n-gram among those of its order; -1 if it was not seen."""
        number = int(ngram[0])
        for table, token in zip(self.tables[1:], ngram[1:].tolist()):
            number = int(find_keys(table.keys, np.array([number * base + token]))[0])
            if number < 0:
                break
        return number


@checked
def train_kneser_ney(
    documents: Iterable[np.ndarray],
    vocab_size: Count,
    *,
    order: Count = 5,
    smooth_over: Literal["all", "seen"] = "all",
    fallback: Discounts | None = None,
) -> KneserNey:
    """Counts and smooths the n-grams of documents.

    Args:
        documents: token ids of each, without a token that starts it: a start of the model's own is
            put before each. It is a context and never predicted. What ends a document is a token
            like any other, if it is there.
        vocab_size: number of token ids.
        order: length of the longest n-gram.
        smooth_over: which tokens the shortest context makes equally likely. "all": every id below
            ``vocab_size``, so that the probabilities of all ids sum to 1. "seen": KenLM's choice,
            those that occur and one unknown token; an id that does not occur gets the probability
            of that token, and the probabilities of the ids that occur and one more sum to 1.
        fallback: discounts of an order that has too few n-grams to estimate them; None is an error.

    Raises:
        ConfigError: a setting that cannot be honoured.
        DataError: there are no tokens, an id is out of range, or the discounts of an order cannot
            be estimated.
    """
    if smooth_over not in ("all", "seen"):
        raise ConfigError(f"smooth_over is {smooth_over!r}; it must be all or seen")
    if fallback is not None:
        _check_fallback(fallback)
    stream = token_stream(documents, vocab_size)
    unigrams = np.bincount(stream.ids, minlength=stream.base)
    unigrams[stream.start] = 0
    tokens = int(unigrams.sum())
    if not tokens:
        raise DataError("the documents have no tokens; an n-gram model needs some")
    equal = 1 / vocab_size
    if smooth_over == "seen":
        equal = 1 / (np.count_nonzero(unigrams) + 1)
    counts = list(count_ngrams(stream, order))
    return _smoothed(unigrams, counts, stream, equal, fallback)._replace(train_tokens=tokens)


def _check_fallback(fallback: Discounts) -> None:
    fits = len(fallback) == 3 and all(0 <= d <= k for k, d in enumerate(fallback, 1))
    if not fits:
        raise ConfigError(
            f"fallback is {fallback!r}; it must be three discounts, from 0 to 1, 2 and 3"
        )


def _smoothed(
    unigrams: np.ndarray,
    counts: list[NgramCounts],
    stream: TokenStream,
    equal: float,
    fallback: Discounts | None,
) -> KneserNey:
    """The model of counted n-grams; ``equal`` is the probability below all orders."""
    adjusted = _adjusted_counts(unigrams, counts)
    discounts = []
    fallback_orders = []
    for n, c in enumerate(adjusted, 1):
        try:
            discounts.append(estimate_discounts(c, n))
        except DataError:
            if fallback is None:
                raise
            discounts.append(fallback)
            fallback_orders.append(n)
    context = np.zeros(stream.base, np.int64)
    probability, _ = _probabilities(
        adjusted[0], context, 1, discounts[0], np.full(stream.base, equal)
    )
    probability[stream.start] = 0
    keys = np.arange(stream.base)
    tables = []
    for c, found, discount in zip(adjusted[1:], counts, discounts[1:]):
        shorter = probability
        context = found.keys // stream.base
        longer, backoff = _probabilities(c, context, len(keys), discount, shorter[found.suffix])
        tables.append(NgramTable(keys, shorter, backoff))
        keys = found.keys
        probability = longer
    tables.append(NgramTable(keys, probability, np.ones(len(keys))))
    return KneserNey(stream.start, tuple(tables), tuple(discounts), tuple(fallback_orders), 0)


def _adjusted_counts(unigrams: np.ndarray, counts: list[NgramCounts]) -> list[np.ndarray]:
    """The counts that Kneser–Ney smoothing takes, of order 1, 2, …."""
    if not counts:
        return [unigrams]
    adjusted = [np.bincount(counts[0].suffix, minlength=len(unigrams))]
    for shorter, longer in pairwise(counts):
        preceding = np.bincount(longer.suffix, minlength=shorter.types)
        adjusted.append(np.where(shorter.starts_document, shorter.occurrences, preceding))
    return [*adjusted, counts[-1].occurrences]


def estimate_discounts(counts: np.ndarray, order: int) -> Discounts:
    """The three discounts of one order (equation 26 of Chen & Goodman).

    Args:
        counts: adjusted counts of its n-grams.
        order: for messages.

    Raises:
        DataError: no n-gram has a count of 1, of 2 or of 3, or a discount is not between 0 and its
            count.
    """
    of_count = np.bincount(counts[counts < 5], minlength=5)
    remedy = "use more text, a lower order, or give fallback discounts such as (0.5, 1.0, 1.5)"
    for k in (1, 2, 3):
        if not of_count[k]:
            raise DataError(
                f"the discounts of {order}-grams cannot be estimated: none has a count of {k};"
                f" {remedy}"
            )
    y = of_count[1] / (of_count[1] + 2 * of_count[2])
    found = [k - (k + 1) * y * of_count[k + 1] / of_count[k] for k in (1, 2, 3)]
    for k, discount in enumerate(found, 1):
        if not 0 <= discount <= k:
            raise DataError(
                f"the discount of {order}-grams with a count of {k} would be {discount:.3f}, which"
                f" is not from 0 to {k}; {remedy}"
            )
    return float(found[0]), float(found[1]), float(found[2])


def _probabilities(
    counts: np.ndarray,
    context: np.ndarray,
    contexts: int,
    discounts: Discounts,
    shorter: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated probabilities of the n-grams of one order, and γ of their contexts.

    Args:
        counts: adjusted counts [n-grams].
        context: number of each n-gram's context [n-grams].
        contexts: how many contexts there are.
        discounts: for counts of 1, of 2, and of 3 and more.
        shorter: probability of each n-gram's last token after the shorter context [n-grams].
    """
    discount = np.array([0.0, *discounts])[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=contexts)
    reserved = np.bincount(context, weights=discount, minlength=contexts)
    backoff = np.ones(contexts)
    np.divide(reserved, total, out=backoff, where=total > 0)
    kept = (counts - discount) / np.maximum(total, 1)[context]
    return kept + backoff[context] * shorter, backoff
