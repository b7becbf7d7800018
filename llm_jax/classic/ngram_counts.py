"""Which n-grams of token ids a corpus has, how often, and what precedes them.

Documents lie in one array, each after a token that starts it and that is no id of the vocabulary.
No n-gram crosses from one document into the next. The n-grams of one order are numbered by their
sorted keys, ``number of the first n - 1 tokens · base + last token``; unigrams by their token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from llm_jax.types import DataError


class TokenStream(NamedTuple):
    """Documents one after the other.

    Attributes:
        ids: int64 [positions]; ``start`` before the tokens of each document.
        left: int64 [positions], number of tokens from here to the end of the document.
        start: the id that starts documents, which is the size of the vocabulary.
    """

    ids: np.ndarray
    left: np.ndarray
    start: int

    @property
    def base(self) -> int:
        """What the keys of n-grams count in."""
        return self.start + 1


def token_stream(documents: Iterable[np.ndarray], vocab_size: int) -> TokenStream:
    """Joins documents of token ids.

    Raises:
        DataError: an id that is not from 0 to ``vocab_size - 1``, or something that is not one row
            of whole numbers.
    """
    pieces = []
    lengths = []
    start = np.array([vocab_size])
    for i, document in enumerate(documents):
        ids = _checked(document, i, vocab_size)
        pieces += [start, ids]
        lengths.append(len(ids) + 1)
    if not pieces:
        return TokenStream(np.zeros(0, np.int64), np.zeros(0, np.int64), vocab_size)
    ends = np.repeat(np.cumsum(lengths), lengths)
    return TokenStream(np.concatenate(pieces), ends - np.arange(len(ends)), vocab_size)


def _checked(document: np.ndarray, index: int, vocab_size: int) -> np.ndarray:
    ids = np.asarray(document)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise DataError(
            f"document {index} is an array of {ids.dtype} of shape {ids.shape}; it must be one row"
            " of token ids"
        )
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise DataError(
            f"document {index} has the token id {outside[0]:,}; ids must be from 0 to"
            f" {vocab_size - 1:,}"
        )
    return ids.astype(np.int64)


class NgramCounts(NamedTuple):
    """The different n-grams of one order n > 1.

    Attributes:
        keys: int64 [n-grams], sorted.
        occurrences: int64 [n-grams].
        suffix: int64 [n-grams], number of the (n - 1)-gram that lacks the first token.
        starts_document: bool [n-grams], whether the first token is the start of a document.
    """

    keys: np.ndarray
    occurrences: np.ndarray
    suffix: np.ndarray
    starts_document: np.ndarray

    @property
    def types(self) -> int:
        """Number of different n-grams."""
        return len(self.keys)


def count_ngrams(stream: TokenStream, longest: int) -> Iterator[NgramCounts]:
    """Yields the n-grams of order 2, 3, … ``longest``."""
    numbers = stream.ids
    begins = np.arange(len(stream.ids))
    for n in range(2, longest + 1):
        begins = begins[stream.left[begins] >= n]
        keys = numbers[begins] * stream.base + stream.ids[begins + n - 1]
        keys, first, number_at, occurrences = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        first = begins[first]
        yield NgramCounts(
            keys=keys,
            occurrences=occurrences,
            suffix=numbers[first + 1],
            starts_document=stream.ids[first] == stream.start,
        )
        numbers = np.full(len(stream.ids), -1)
        numbers[begins] = number_at


def find_keys(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key is among sorted keys, -1 where it is not."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
