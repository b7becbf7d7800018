"""Pairs of texts, one for an encoder to read and one for a decoder to write, packed into records
when the data is prepared.

A record is one row of a batch and holds several pairs:

    encoder_tokens  [encoder_block_size]  tokens that the encoder reads, of all pairs end to end
    encoder_starts  [pairs + 1] int32     offsets where each pair begins and the last one ends
    tokens          [block_size]          tokens that the decoder writes, each text with ``</s>``
    starts          [pairs + 1] int32     offsets where each pair begins and the last one ends

The decoder's inputs are ``tokens`` shifted by one place, after the model's start token;
``PairRows`` derives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.data.shards.records import array_of, record_features, serialize, write_records
from llm_jax.data.shards.rows import KeptBlocks, StoredRows
from llm_jax.data.shards.store import ShardReader, check_tokenizer
from llm_jax.types import Batch, DataError, Tokens

# Rows that are open at once while pairs are packed. More of them fill rows better, and every pair
# searches them.
_OPEN_ROWS = 64


class Pair(NamedTuple):
    """Token ids of one pair.

    Attributes:
        encoder_tokens: tokens that an encoder reads.
        tokens: tokens that a decoder writes, with ``</s>``.
    """

    encoder_tokens: Sequence[int]
    tokens: Sequence[int]


class PackedPairs(NamedTuple):
    """One record, with the fields that the module describes."""

    encoder_tokens: np.ndarray
    encoder_starts: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray


class RowShape(NamedTuple):
    """Room in a row: tokens that an encoder reads, and tokens that a decoder writes."""

    encoder_length: int
    length: int


class _OpenRow:
    """A row that is being packed."""

    __slots__ = ("pairs", "reads", "writes")

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.reads = 0
        self.writes = 0

    def add(self, pair: Pair) -> None:
        """Append a pair, which fits."""
        self.pairs.append(pair)
        self.reads += len(pair.encoder_tokens)
        self.writes += len(pair.tokens)

    def fullness(self, shape: RowShape) -> float:
        """Sum of the shares of both sides that are filled."""
        return self.reads / shape.encoder_length + self.writes / shape.length


def pack_pairs(pairs: Iterable[Pair], shape: RowShape) -> Iterator[list[Pair]]:
    """Pack pairs into rows: each goes into the first open row that has room for both of its sides.

    Args:
        pairs: each fits a row.
        shape: room in a row.

    Yields:
        The pairs of a row, in the order in which rows are closed. The fullest of the open rows is
        closed when a pair needs another one.
    """
    rows: list[_OpenRow] = []
    for pair in pairs:
        most_reads = shape.encoder_length - len(pair.encoder_tokens)
        most_writes = shape.length - len(pair.tokens)
        for row in rows:
            if row.reads <= most_reads and row.writes <= most_writes:
                break
        else:
            if len(rows) == _OPEN_ROWS:
                fullest = max(range(len(rows)), key=lambda index: rows[index].fullness(shape))
                yield rows.pop(fullest).pairs
            row = _OpenRow()
            rows.append(row)
        row.add(pair)
    for row in rows:
        yield row.pairs


def write_pairs(
    path: Path, pairs: Iterable[Pair], shape: RowShape, pad_id: int, dtype: np.dtype
) -> int:
    """Pack pairs into rows and write one shard file, atomically.

    Args:
        path: file to write.
        pairs: each fits a row.
        shape: room in a row.
        pad_id: fills the rest of a row.
        dtype: of the tokens in a record.

    Returns:
        The number of rows.
    """
    rows = list(pack_pairs(pairs, shape))
    write_records(path, (_record(row, shape, pad_id, dtype) for row in rows))
    return len(rows)


def _record(row: list[Pair], shape: RowShape, pad_id: int, dtype: np.dtype) -> bytes:
    encoder_tokens, encoder_starts = _joined(
        [pair.encoder_tokens for pair in row], shape.encoder_length, pad_id, dtype
    )
    tokens, starts = _joined([pair.tokens for pair in row], shape.length, pad_id, dtype)
    return serialize(
        encoder_starts=encoder_starts, encoder_tokens=encoder_tokens, starts=starts, tokens=tokens
    )


def _joined(
    sides: list[Sequence[int]], length: int, pad_id: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [length] of one side of all pairs, end to end, and starts [pairs + 1] int32."""
    starts = np.cumsum([0, *map(len, sides)]).astype(np.int32)
    tokens = np.full(length, pad_id, dtype)
    tokens[: starts[-1]] = np.concatenate([np.asarray(side, dtype) for side in sides])
    return tokens, starts


def parse_pairs(record: bytes, dtype: np.dtype) -> PackedPairs:
    """Parse a record of pairs.

    Args:
        record: as ``serialize`` returns it.
        dtype: of the tokens.
    """
    features = record_features(record)
    return PackedPairs(
        encoder_tokens=array_of(features, "encoder_tokens", dtype),
        encoder_starts=array_of(features, "encoder_starts", np.int32),
        tokens=array_of(features, "tokens", dtype),
        starts=array_of(features, "starts", np.int32),
    )


class PairRows(StoredRows):
    """The rows of one split of a folder of pairs, by index.

    Args:
        path: folder of shards of pairs.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, the block size of the shards.
        encoder_length: S, the encoder_block_size of the shards.
        start_token: the decoder's input before each of its texts.
        cache_bytes: memory for decoded records.
        tokenizer_fingerprint: of the tokenizer that the shards must be made with; None for any.

    Raises:
        DataError: as ``ShardReader``; or another tokenizer or another length.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        *,
        encoder_length: int,
        start_token: int,
        cache_bytes: int = 0,
        tokenizer_fingerprint: str | None = None,
    ):
        reader = ShardReader(path, split, "pairs", parse_pairs, width=0)
        super().__init__(reader, [shard["blocks"] for shard in reader.manifest["shards"][split]])
        self.start_token = start_token
        self.seq_length = seq_length
        check_tokenizer(path, self.manifest, tokenizer_fingerprint)
        self._check_length("data.seq_length", seq_length, "block_size")
        self._check_length("data.objective.encoder_length", encoder_length, "encoder_block_size")
        self._records = KeptBlocks(
            self.reader, self.reader.dtype.itemsize * (seq_length + encoder_length), cache_bytes
        )

    def _check_length(self, setting: str, given: int, name: str) -> None:
        """Raise DataError unless the setting equals the manifest's ``name``."""
        packed = self.manifest[name]
        if given != packed:
            raise DataError(
                f"{setting} is {given}, and the pairs of {str(self.reader.folder)!r} are packed"
                f" into rows of {packed} ({name}); set it to that, or prepare them with"
                f" --{name.replace('_', '-')} {given}"
            )

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, [rows, T] and [rows, S]."""
        keys = list(zip(*(part.tolist() for part in self.locate(rows))))
        found = self._records.get(keys)
        return pairs_to_batch([found[key] for key in keys], self.start_token)


def pairs_to_batch(records: Sequence[PackedPairs], start_token: int) -> Batch:
    """The ``Batch`` of records: pair n of a row is segment n of both sides; see ``llm_jax.types``
    for what the fields mean.
    """
    targets = np.stack([record.tokens for record in records]).astype(np.int32)
    segment_ids, begins = _segments([record.starts for record in records], targets.shape[1])
    tokens = np.where(begins, start_token, np.roll(targets, 1, axis=1))
    real = segment_ids != 0
    encoder_tokens = np.stack([record.encoder_tokens for record in records]).astype(np.int32)
    encoder_segment_ids, encoder_begins = _segments(
        [record.encoder_starts for record in records], encoder_tokens.shape[1]
    )
    ids = np.where(real, tokens, targets).astype(np.int32)
    return Batch(
        inputs=Tokens(ids, segment_ids, _positions(segment_ids, begins)),
        targets=targets,
        loss_mask=real,
        encoder=Tokens(
            encoder_tokens, encoder_segment_ids, _positions(encoder_segment_ids, encoder_begins)
        ),
    )


def _positions(segment_ids: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Index of each token within its segment, int32; 0 for padding."""
    index = np.arange(segment_ids.shape[1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    return ((index - first) * (segment_ids != 0)).astype(np.int32)


def _segments(starts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments of rows whose offsets, the end of the last segment included, are ``starts``.

    Returns:
        Segment ids int32 [B, length], and where segments begin, bool [B, length].
    """
    ids = np.zeros((len(starts), length), np.int32)
    begins = np.zeros((len(starts), length), bool)
    for row, begin, offsets in zip(ids, begins, starts):
        row[: offsets[-1]] = np.repeat(np.arange(1, len(offsets)), np.diff(offsets))
        begin[offsets[:-1]] = True
    return ids, begins
