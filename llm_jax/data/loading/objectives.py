"""Objectives: what a model is asked of the rows that are read. Each is a pure function of a row and
of its number in the run.

- ``NextToken``: the token that follows (rows as they are).
- ``Masked``: tokens that were hidden, for an encoder (Devlin et al. 2019, section 3.1), drawn anew
  for every row of every epoch.
- ``Spans``: stretches of text that were cut out, for an encoder–decoder (Raffel et al. 2020,
  section 3.1.4).
- ``Pairs``: the other text of a pair, for an encoder–decoder.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.config import DataConfig
from llm_jax.data.loading.hashing import draws, row_keys
from llm_jax.data.shards.pairs import PairRows
from llm_jax.data.shards.rows import Rows
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import Batch, DataError

MASKS = ("<mask>", "[MASK]")
SENTINEL = "<extra_id_{}>"


class Objective(Protocol):
    """What rows of a folder of shards become. Lengths are T of the batches."""

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows | PairRows:
        """The rows that batches are made of. fingerprint: of the tokenizer, see
        ``shards.check_tokenizer``.
        """

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        """``batch`` of such rows, as the model gets it. indices: int [B], each row's number in the
        run.
        """


class NextToken(NamedTuple):
    """The token that follows each token of its document."""

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows:
        return Rows(path, split, seq_length, cache_bytes, fingerprint)

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        return batch


NEXT_TOKEN = NextToken()


class Masked(NamedTuple):
    """Each token but control tokens is chosen with probability ``rate`` and is to be told; of these
    80 % are replaced by the mask, 10 % by any token, and 10 % stay.
    """

    rate: float
    mask_id: int
    control_ids: tuple[int, ...]
    vocab_size: int
    seed: int

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows:
        return Rows(path, split, seq_length, cache_bytes, fingerprint)

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        keys = row_keys(self.seed, indices)
        choice, action, token = (draws(keys, stream, seq_length) for stream in range(3))
        chosen = (
            (choice < self.rate)
            & (batch.segment_ids != 0)
            & ~np.isin(batch.tokens, self.control_ids)
        )
        replaced = np.where(action < 0.8, self.mask_id, (token * self.vocab_size).astype(np.int32))
        tokens = np.where(chosen & (action < 0.9), replaced, batch.tokens).astype(np.int32)
        return batch._replace(tokens=tokens, targets=batch.tokens, loss_mask=chosen)


class Spans(NamedTuple):
    """Of each document of a row about ``rate`` of the tokens are cut out, in spans of
    ``span_length`` on average: what is cut out and what stays are each cut at random places into
    pieces, which are taken in turn. The encoder reads a sentinel in the place of each span; the
    decoder writes each sentinel with its span, then ``</s>``. Unlike the reference's, spans may
    begin a document and need not end it: of a short one, with a single span, it would always be the
    end.

    A row is ``encoder_length`` tokens of text. Documents whose spans have no room left among the T
    tokens of the decoder are left out of that row on both sides; which ones is drawn too, so that
    it is others in another epoch. So are documents of fewer than two tokens.
    """

    encoder_length: int
    rate: float
    span_length: float
    sentinels: tuple[int, ...]
    control_ids: tuple[int, ...]
    start_token: int
    eos_id: int
    pad_id: int
    seed: int

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows:
        noise, spans = span_counts(self.encoder_length, self.rate, self.span_length)
        if spans > len(self.sentinels):
            raise DataError(
                f"data.encoder_length {self.encoder_length} has {spans} spans, and the tokenizer"
                f" {len(self.sentinels)} sentinels ({SENTINEL.format(0)} …); raise"
                f" data.span_length, or train a tokenizer with --sentinels {spans}"
            )
        if noise + spans + 1 > seq_length:
            raise DataError(
                f"data.seq_length is {seq_length}, and what is cut out of data.encoder_length"
                f" {self.encoder_length} tokens takes {noise + spans + 1} with its sentinels; set"
                " it to that or more"
            )
        return Rows(path, split, self.encoder_length, cache_bytes, fingerprint, "encoder_length")

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        keys, (rows, length) = row_keys(self.seed, indices), batch.tokens.shape
        drawn = np.stack([draws(keys, stream, length) for stream in range(3)], axis=1)
        writes, reads = _Side(rows, seq_length, self.pad_id), _Side(rows, length, self.pad_id)
        for row in range(rows):
            documents = [
                np.flatnonzero(batch.segment_ids[row] == n + 1)
                for n in range(int(batch.segment_ids[row].max(initial=0)))
            ]
            for n in np.argsort(drawn[row, 0, : len(documents)]).tolist():
                at = documents[n]
                cut = self._cut(batch.tokens[row, at], drawn[row, 1, at], drawn[row, 2, at])
                if cut is not None and writes.has_room(row, len(cut[1])):
                    reads.put(row, cut[0])
                    writes.put(row, cut[1])
        return Batch(
            tokens=writes.shifted(self.start_token),
            targets=writes.tokens,
            loss_mask=writes.segments != 0,
            segment_ids=writes.segments,
            positions=writes.positions,
            encoder_tokens=reads.tokens,
            encoder_segment_ids=reads.segments,
        )

    def _cut(
        self, tokens: np.ndarray, for_spans: np.ndarray, for_rest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """What the encoder reads and the decoder writes of a document; control tokens at its ends
        are never cut out.
        """
        first, last = (
            int(tokens[0] in self.control_ids),
            len(tokens) - int(tokens[-1] in self.control_ids),
        )
        text = tokens[first:last]
        if len(text) < 2:
            return None
        noise, spans = span_counts(len(text), self.rate, self.span_length)
        away = _pieces(noise, spans, for_spans)
        # One more than there are spans, of which the first and the last may be empty.
        stay = _pieces(len(text) - noise + 2, spans + 1, for_rest)
        stay[[0, -1]] -= 1
        pieces = np.split(text, np.cumsum(np.stack([stay[:-1], away], axis=1).reshape(-1)))
        marks = [np.array([self.sentinels[i]], np.int32) for i in range(spans)]
        reads = [
            tokens[:first],
            *itertools.chain.from_iterable(zip(pieces[:-1:2], marks)),
            pieces[-1],
            tokens[last:],
        ]
        writes = [
            *itertools.chain.from_iterable(zip(marks, pieces[1::2])),
            np.array([self.eos_id], np.int32),
        ]
        return np.concatenate(reads), np.concatenate(writes)


class Pairs(NamedTuple):
    """The decoder's text of a pair, of which the encoder reads the other."""

    encoder_length: int
    start_token: int

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> PairRows:
        return PairRows(
            path, split, seq_length, self.encoder_length, self.start_token, cache_bytes, fingerprint
        )

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        return batch


def make_objective(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> Objective:
    """The objective that ``data.objective`` names. start_token: the model's. DataError where the
    tokenizer lacks what it needs.
    """
    if data.objective == "next_token":
        return NEXT_TOKEN
    if tokenizer.eos_id < 0 and data.objective != "masked":
        raise DataError(
            f"data.objective is {data.objective!r}, and tokenizer {str(tokenizer.path)!r} has no"
            " </s> to end a text with"
        )
    if data.objective == "pairs":
        return Pairs(data.encoder_length, start_token)
    control = {
        tokenizer.piece(id): id for id in range(tokenizer.vocab_size) if tokenizer.is_control(id)
    }
    control_ids = tuple(control.values())
    if data.objective == "masked":
        if not (masks := [control[name] for name in MASKS if name in control]):
            raise DataError(
                f"data.objective is 'masked', and tokenizer {str(tokenizer.path)!r} has no"
                f" {' or '.join(MASKS)}; train one with --control-symbols '{MASKS[0]}'"
            )
        return Masked(data.mask_rate, masks[0], control_ids, tokenizer.vocab_size, data.seed)
    names = map(SENTINEL.format, itertools.count())
    sentinels = tuple(control[name] for name in itertools.takewhile(control.__contains__, names))
    return Spans(
        data.encoder_length,
        data.mask_rate,
        data.span_length,
        sentinels,
        control_ids,
        start_token,
        tokenizer.eos_id,
        tokenizer.pad_id,
        data.seed,
    )


def span_counts(length: int, rate: float, span_length: float) -> tuple[int, int]:
    """How many of ``length`` ≥ 2 tokens are cut out, and in how many spans."""
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / span_length), 1), noise, length - noise)


def _pieces(total: int, parts: int, drawn: np.ndarray) -> np.ndarray:
    """Lengths, each at least 1, of ``total`` cut at the ``parts - 1`` of its ``total - 1`` places
    that have the least of ``drawn``.
    """
    cuts = np.sort(np.argsort(drawn[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


class _Side:
    """Rows [B, length] that documents are put into, each a segment."""

    def __init__(self, rows: int, length: int, pad_id: int):
        self.tokens = np.full((rows, length), pad_id, np.int32)
        self.segments, self.positions = np.zeros((2, rows, length), np.int32)
        self._used, self._documents = np.zeros((2, rows), int)

    def has_room(self, row: int, size: int) -> bool:
        return self._used[row] + size <= self.tokens.shape[1]

    def put(self, row: int, ids: np.ndarray) -> None:
        at = slice(self._used[row], self._used[row] + len(ids))
        self._documents[row] += 1
        self.tokens[row, at], self.segments[row, at], self.positions[row, at] = (
            ids,
            self._documents[row],
            np.arange(len(ids)),
        )
        self._used[row] += len(ids)

    def shifted(self, start_token: int) -> np.ndarray:
        """The tokens one place later, each document's after ``start_token``."""
        moved = np.where(self.positions == 0, start_token, np.roll(self.tokens, 1, axis=1))
        return np.where(self.segments != 0, moved, self.tokens).astype(np.int32)
