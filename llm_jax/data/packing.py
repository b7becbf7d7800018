"""Packing of documents, lists of token ids, into rows: numpy alone, for any training loop.

The rows are those of ``llm_jax.types.Batch``, made by what makes them of our shards.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from llm_jax.data.shards.pack import rows_to_batch
from llm_jax.types import Batch, ConfigError, DataError

Method = Literal["best_fit", "first_fit"]
LongDocuments = Literal["split", "error"]

_LARGEST_ID = 2**31 - 1


class _Piece(NamedTuple):
    """A document, or a part of a long one.

    Attributes:
        tokens: at most as many as a row has.
        next: the token that follows in the document; empty at its end.
    """

    tokens: np.ndarray
    next: np.ndarray


def pack_documents(
    documents: Iterable[Sequence[int] | np.ndarray],
    seq_length: int,
    *,
    method: Method = "best_fit",
    long_documents: LongDocuments = "split",
    pad_id: int = 0,
) -> Batch:
    """Packs documents into rows; every token is in one row, and the result is the same each time.

    A document is never cut to fill a row. Its tokens are one segment, with positions from 0, and
    each but the last predicts the next one.

    Args:
        documents: token ids of each, with whatever tokens are to begin and end it.
        seq_length: T.
        method: the row that a document goes into: ``best_fit``, the one with the least room that
            fits; ``first_fit``, the first that fits. A new row is begun where none does.
        long_documents: what becomes of a document of more than T tokens: ``split``, parts of T
            tokens and a rest, each a segment of its own, whose last token still predicts the first
            of the next part; or ``error``.
        pad_id: the id of padding, whose segment is 0.

    Returns:
        numpy arrays [rows, T]: ``inputs.ids``, ``inputs.segment_ids``, ``inputs.positions``,
        ``targets`` and ``loss_mask``.

    Raises:
        ConfigError: an option is unknown, or seq_length is below 1.
        DataError: a document is empty, too long, or has ids that are no token ids.
    """
    if seq_length < 1:
        raise ConfigError(f"seq_length is {seq_length}; it must be at least 1")
    if long_documents not in get_args(LongDocuments):
        raise ConfigError(f"long_documents is {long_documents!r}; use split or error")
    pieces: list[_Piece] = []
    for index, document in enumerate(documents):
        tokens = _token_ids(index, document)
        if len(tokens) > seq_length and long_documents == "error":
            raise DataError(
                f"document {index} has {len(tokens)} tokens, more than seq_length {seq_length};"
                " raise seq_length, or use long_documents='split'"
            )
        pieces += _pieces(tokens, seq_length)
    lengths = [len(piece.tokens) for piece in pieces]
    return _batch(pieces, assign_rows(lengths, seq_length, method), seq_length, pad_id)


def assign_rows(
    lengths: Sequence[int] | np.ndarray, seq_length: int, method: Method = "best_fit"
) -> np.ndarray:
    """The row of each document, in the order of the documents.

    Sorted by falling length, documents fill rows better (first-fit and best-fit decreasing), and
    are no longer in random order.

    Args:
        lengths: tokens of each document, 1 to ``seq_length``.
        seq_length: tokens of a row.
        method: as in ``pack_documents``.

    Returns:
        int32 [documents]; rows are numbered from 0 without gaps.

    Raises:
        ConfigError: the method is unknown.
        DataError: a document does not fit a row.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}; use best_fit or first_fit")
    for index, length in enumerate(lengths):
        if not 1 <= length <= seq_length:
            raise DataError(
                f"document {index} has {length} tokens; a row takes documents of 1 to {seq_length}"
            )
    assign = _best_fit if method == "best_fit" else _first_fit
    return np.array(assign([int(length) for length in lengths], seq_length), np.int32)


def _best_fit(lengths: list[int], seq_length: int) -> list[int]:
    rows = []
    count = 0
    # (room, row) of rows that are not full, sorted.
    open_rows: list[tuple[int, int]] = []
    for length in lengths:
        place = bisect.bisect_left(open_rows, (length, 0))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room = seq_length
            row = count
            count += 1
        rows.append(row)
        if room > length:
            bisect.insort(open_rows, (room - length, row))
    return rows


def _first_fit(lengths: list[int], seq_length: int) -> list[int]:
    # A tree of the largest room below each node; its leaves are all rows that could be needed.
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    most = [seq_length] * (2 * leaves)
    rows = []
    for length in lengths:
        node = 1
        while node < leaves:
            node = 2 * node if most[2 * node] >= length else 2 * node + 1
        rows.append(node - leaves)
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return rows


def _token_ids(index: int, document: Sequence[int] | np.ndarray) -> np.ndarray:
    """The ids of a document as int32 [tokens]."""
    tokens = np.asarray(document)
    if tokens.size == 0:
        raise DataError(f"document {index} is empty; leave it out")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(
            f"document {index} is {tokens.dtype} of shape {tokens.shape}; expected a list of token"
            " ids"
        )
    outside = tokens[(tokens < 0) | (tokens > _LARGEST_ID)]
    if outside.size:
        raise DataError(
            f"document {index} has the id {outside[0]}; token ids are 0 to {_LARGEST_ID}"
        )
    return tokens.astype(np.int32)


def _pieces(tokens: np.ndarray, seq_length: int) -> list[_Piece]:
    """A document, or its parts of at most ``seq_length`` tokens."""
    return [
        _Piece(tokens[at : at + seq_length], tokens[at + seq_length : at + seq_length + 1])
        for at in range(0, len(tokens), seq_length)
    ]


def _batch(pieces: list[_Piece], rows: np.ndarray, seq_length: int, pad_id: int) -> Batch:
    count = int(rows.max()) + 1 if len(rows) else 0
    windows = np.full((count, seq_length + 1), pad_id, np.int32)
    starts = np.zeros((count, seq_length + 1), bool)
    lengths = np.zeros(count, np.int32)
    for piece, row in zip(pieces, rows):
        begin = lengths[row]
        # Only a part that fills its row is followed by another one.
        tokens = np.concatenate([piece.tokens, piece.next])
        windows[row, begin : begin + len(tokens)] = tokens
        starts[row, begin] = True
        lengths[row] += len(tokens)
    return rows_to_batch(windows, starts, lengths)
