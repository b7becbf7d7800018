"""Words counted by their hash, without a vocabulary (Weinberger et al. 2009).

The column of a word is MurmurHash3 (32 bits, seed 0) of its UTF-8 bytes, modulo the number of
columns, as in scikit-learn's ``HashingVectorizer``: the same text gives the same matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from scipy.sparse import csr_matrix, vstack

from llm_jax.classic.occurrences import number_words
from llm_jax.classic.words import WordRule, checked_texts
from llm_jax.ranges import Count, checked
from llm_jax.types import DataError

_RULE = WordRule()
# The words of so many documents are in memory at once.
_DOCUMENTS = 4096


@checked
def hash_words(
    texts: Iterable[str],
    rule: WordRule = _RULE,
    *,
    columns: Count = 2**20,
    signed: bool = True,
    binary: bool = False,
) -> csr_matrix:
    """Occurrences of words by the hash of the word, int32 [texts, columns].

    Args:
        texts: documents.
        rule: how a text becomes words.
        columns: number of columns; words that collide add up.
        signed: a word counts +1 or -1 by the sign of its hash, so that collisions cancel on
            average.
        binary: 1 for every column that occurs, whatever it adds up to.

    Raises:
        DataError: something that is not a text, or there is none.
    """
    stream = checked_texts(texts)
    parts = []
    while documents := list(islice(stream, _DOCUMENTS)):
        parts.append(_hashed(documents, rule, columns, signed))
    if not parts:
        raise DataError("texts is empty; pass at least one document")
    counts = csr_matrix(vstack(parts, format="csr")) if len(parts) > 1 else parts[0]
    if binary:
        counts.data.fill(1)
    return counts


def _hashed(documents: list[str], rule: WordRule, columns: int, signed: bool) -> csr_matrix:
    """The matrix of a few documents: each different word is hashed once."""
    words, found = number_words(documents, rule)
    # A lone surrogate has no UTF-8; it keeps the bytes that it would have.
    hashes = murmur3([word.encode("utf-8", "surrogatepass") for word in words])
    # The absolute value of -2**31 does not fit into 32 bits.
    column = np.abs(hashes.astype(np.int64)) % columns
    sign = np.where(hashes >= 0, 1, -1) if signed else np.ones(len(hashes))
    hashed = found._replace(ids=column.astype(np.int32)[found.ids])
    return hashed.counts(columns, sign.astype(np.int32)[found.ids])


def murmur3(keys: list[bytes], seed: int = 0) -> np.ndarray:
    """MurmurHash3_x86_32 (Appleby 2011) of each key, int32 [keys]."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    data = np.frombuffer(b"".join(keys), np.uint8)
    starts = np.cumsum(lengths) - lengths
    hashes = np.empty(len(keys), np.uint32)
    for length, rows in _rows_by_length(lengths):
        at = starts[rows][:, None] + np.arange(length)
        hashes[rows] = _murmur3_of_rows(data[at], seed)
    return hashes.view(np.int32)


def _rows_by_length(lengths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every length with the indices of the keys that have it."""
    order = np.argsort(lengths, kind="stable")
    different, first = np.unique(lengths[order], return_index=True)
    yield from zip(different.tolist(), np.split(order, first[1:]))


def _murmur3_of_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """The hash of each row of bytes, uint8 [keys, length] to uint32 [keys]."""
    length = rows.shape[1]
    whole = length - length % 4
    blocks = np.ascontiguousarray(rows[:, :whole]).view("<u4")
    state = np.full(len(rows), seed, np.uint32)
    for block in blocks.T:
        state ^= _scrambled(block)
        state = _rotated(state, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    if whole < length:
        tail = np.zeros((len(rows), 4), np.uint8)
        tail[:, : length - whole] = rows[:, whole:]
        state ^= _scrambled(tail.view("<u4")[:, 0])
    state ^= np.uint32(length)
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x85EBCA6B)
    state ^= state >> np.uint32(13)
    state *= np.uint32(0xC2B2AE35)
    return state ^ (state >> np.uint32(16))


def _scrambled(block: np.ndarray) -> np.ndarray:
    return _rotated(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotated(value: np.ndarray, bits: int) -> np.ndarray:
    """Rotates to the left."""
    return (value << np.uint32(bits)) | (value >> np.uint32(32 - bits))
