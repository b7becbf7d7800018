"""Spans: an encoder–decoder writes stretches of text that were cut out (Raffel et al. 2020, section
3.1.4).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_jax.config import DataConfig
from llm_jax.config.data import SpansConfig
from llm_jax.data.loading.hashing import draws, row_keys
from llm_jax.data.shards.rows import Rows
from llm_jax.objectives.contract import Objective
from llm_jax.objectives.special_tokens import control_tokens, require_end
from llm_jax.objectives.token_batches import encoder_fields, random_encoder_tokens
from llm_jax.objectives.token_loss import EVALUATION, make_token_loss
from llm_jax.types import Batch, DataError, Tokens

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer

SENTINEL = "<extra_id_{}>"


class _Cut(NamedTuple):
    """Tokens of a document that the encoder reads, and those that the decoder writes."""

    reads: np.ndarray
    writes: np.ndarray


class Spans(NamedTuple):
    """Spans of ``span_length`` tokens on average, in all about ``rate`` of the tokens, are cut out
    of each document of a row.

    The cut-out tokens and the remaining ones are each divided at random places into pieces, and
    the pieces alternate. The encoder reads a sentinel in the place of each span; the decoder
    writes each sentinel followed by its span, then ``</s>``. The reference's last span always ends
    the document; here a span may begin a document, and the last one need not end it, since the one
    span of a short document would always be its end.

    A row is ``encoder_length`` tokens of text. A document whose spans do not fit into the rest of
    the decoder's T tokens is left out on both sides. The order in which documents are tried is
    random, so that another epoch leaves out others. Documents of fewer than two tokens are left
    out too.
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
                f"data.objective.encoder_length {self.encoder_length} has {spans} spans, and the"
                f" tokenizer {len(self.sentinels)} sentinels ({SENTINEL.format(0)} …); raise"
                f" data.objective.span_length, or train a tokenizer with --sentinels {spans}"
            )
        if noise + spans + 1 > seq_length:
            raise DataError(
                f"data.seq_length is {seq_length}, and what is cut out of"
                f" data.objective.encoder_length {self.encoder_length} tokens takes {noise + spans + 1} with its sentinels; set"
                " it to that or more"
            )
        return Rows(path, split, self.encoder_length, cache_bytes, fingerprint, "encoder_length")

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        rows, length = batch.inputs.ids.shape
        keys = row_keys(self.seed, indices)
        turn, for_spans, for_rest = (draws(keys, stream, length) for stream in range(3))
        writes = _Side(rows, seq_length, self.pad_id)
        reads = _Side(rows, length, self.pad_id)
        for row in range(rows):
            documents = [
                np.flatnonzero(batch.inputs.segment_ids[row] == n + 1)
                for n in range(int(batch.inputs.segment_ids[row].max(initial=0)))
            ]
            for n in np.argsort(turn[row, : len(documents)]).tolist():
                at = documents[n]
                cut = self._cut(batch.inputs.ids[row, at], for_spans[row, at], for_rest[row, at])
                if cut is not None and writes.has_room(row, len(cut.writes)):
                    reads.put(row, cut.reads)
                    writes.put(row, cut.writes)
        return Batch(
            inputs=Tokens(writes.shifted(self.start_token), writes.segments, writes.positions),
            targets=writes.tokens,
            loss_mask=writes.segments != 0,
            encoder=Tokens(reads.tokens, reads.segments, reads.positions),
        )

    def _cut(self, tokens: np.ndarray, for_spans: np.ndarray, for_rest: np.ndarray) -> _Cut | None:
        """The two sides of a document, None if it is too short. Control tokens at its ends are
        never cut out.
        """
        first = int(tokens[0] in self.control_ids)
        last = len(tokens) - int(tokens[-1] in self.control_ids)
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
        return _Cut(np.concatenate(reads), np.concatenate(writes))


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
        self.segments = np.zeros((rows, length), np.int32)
        self.positions = np.zeros((rows, length), np.int32)
        self._used = np.zeros(rows, int)
        self._documents = np.zeros(rows, int)

    def has_room(self, row: int, size: int) -> bool:
        return self._used[row] + size <= self.tokens.shape[1]

    def put(self, row: int, ids: np.ndarray) -> None:
        at = slice(self._used[row], self._used[row] + len(ids))
        self._documents[row] += 1
        self.tokens[row, at] = ids
        self.segments[row, at] = self._documents[row]
        self.positions[row, at] = np.arange(len(ids))
        self._used[row] += len(ids)

    def shifted(self, start_token: int) -> np.ndarray:
        """The tokens one place later, each document's after ``start_token``."""
        moved = np.where(self.positions == 0, start_token, np.roll(self.tokens, 1, axis=1))
        return np.where(self.segments != 0, moved, self.tokens).astype(np.int32)


def make_spans(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> Spans:
    """``Spans`` of a run. Raises DataError if the tokenizer has no ``</s>``."""
    require_end(data, tokenizer)
    control = control_tokens(tokenizer)
    names = map(SENTINEL.format, itertools.count())
    sentinels = tuple(control[name] for name in itertools.takewhile(control.__contains__, names))
    assert isinstance(data.objective, SpansConfig)
    return Spans(
        encoder_length=data.objective.encoder_length,
        rate=data.objective.mask_rate,
        span_length=data.objective.span_length,
        sentinels=sentinels,
        control_ids=tuple(control.values()),
        start_token=start_token,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        seed=data.seed,
    )


SPANS = Objective(
    name="spans",
    fields=encoder_fields,
    example=random_encoder_tokens,
    make_transform=make_spans,
    make_loss=make_token_loss,
    evaluation=EVALUATION,
)
