"""Pairs of texts: what an encoder reads and what a decoder writes, packed into records when the
data is prepared.

A record is one row of a batch, with several pairs one after the other:

    encoder_tokens  [encoder_block_size]  what the encoder reads of all pairs, end to end
    encoder_starts  [pairs + 1] int32     where each pair's begins, and where the last one ends
    tokens          [block_size]          what the decoder writes of all pairs, each with ``</s>``
    starts          [pairs + 1] int32     likewise

A decoder reads the same tokens one place later, after the model's start token: ``PairRows`` makes
that of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.shards.records import (
    array_of,
    record_features,
    serialize,
    token_dtype,
    write_records,
)
from llm_jax.data.shards.rows import KeptBlocks, StoredRows
from llm_jax.data.shards.store import ShardReader, check_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import Batch, DataError

# Rows that are open at once while pairs are packed: more fill rows better, and are looked through
# for every pair.
_OPEN_ROWS = 64


class Pair(NamedTuple):
    """Token ids of one pair, ``tokens`` with their ``</s>``."""

    encoder_tokens: Sequence[int]
    tokens: Sequence[int]


class PackedPairs(NamedTuple):
    """One record."""

    encoder_tokens: np.ndarray
    encoder_starts: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray


def pack_pairs(pairs: Iterable[Pair], encoder_length: int, length: int) -> Iterator[list[Pair]]:
    """Rows of pairs, in the order in which they are full: each pair goes into the first open row
    that has room for both of its sides.

    Args:
        pairs: each fits a row.
        encoder_length: room for ``encoder_tokens`` in a row.
        length: room for ``tokens`` in a row.
    """
    rows: list[tuple[int, int, list[Pair]]] = []
    for pair in pairs:
        reads, writes = len(pair.encoder_tokens), len(pair.tokens)
        at = next(
            (
                i
                for i, (e, t, _) in enumerate(rows)
                if e + reads <= encoder_length and t + writes <= length
            ),
            len(rows),
        )
        if at == len(rows):
            if len(rows) == _OPEN_ROWS:
                yield rows.pop(
                    max(
                        range(_OPEN_ROWS),
                        key=lambda i: rows[i][0] / encoder_length + rows[i][1] / length,
                    )
                )[2]
                at -= 1
            rows.append((0, 0, []))
        e, t, row = rows[at]
        row.append(pair)
        rows[at] = (e + reads, t + writes, row)
    yield from (row for _, _, row in rows)


def write_pairs(
    path: Path,
    texts: list[tuple[str, ...]],
    tokenizer: Tokenizer,
    block_size: int,
    encoder_block_size: int,
) -> dict[str, Any]:
    """Tokenise pairs (what a decoder writes, what an encoder reads) and write those that fit a row;
    returns what the manifest says.
    """
    reads = encoder_ids(tokenizer, [read for _, read in texts])
    writes = [
        [*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch([write for write, _ in texts])
    ]
    fitting = [
        0 < len(r) <= encoder_block_size and len(w) <= block_size for r, w in zip(reads, writes)
    ]
    empty = sum(not r for r in reads)
    pairs = [Pair(r, w) for r, w, fits in zip(reads, writes, fitting) if fits]
    rows = list(pack_pairs(pairs, encoder_block_size, block_size))
    kept = [write for (write, _), fits in zip(texts, fitting) if fits]
    dtype = token_dtype(tokenizer.vocab_size)
    write_records(
        path,
        (_record(row, encoder_block_size, block_size, tokenizer.pad_id, dtype) for row in rows),
    )
    return {
        "bytes": path.stat().st_size,
        "documents": len(pairs),
        "tokens": sum(len(pair.tokens) for pair in pairs),
        "encoder_tokens": sum(len(pair.encoder_tokens) for pair in pairs),
        "blocks": len(rows),
        "text_bytes": sum(len(text.encode()) for text in kept),
        "words": sum(len(text.split()) for text in kept),
        "dropped": {"empty": empty, "too_long": len(texts) - len(pairs) - empty},
    }


def _record(
    row: list[Pair], encoder_length: int, length: int, pad_id: int, dtype: np.dtype
) -> bytes:
    def laid(sides: list[Sequence[int]], room: int) -> tuple[np.ndarray, np.ndarray]:
        starts = np.cumsum([0, *map(len, sides)]).astype(np.int32)
        tokens = np.full(room, pad_id, dtype)
        tokens[: starts[-1]] = np.concatenate([np.asarray(side, dtype) for side in sides])
        return tokens, starts

    encoder_tokens, encoder_starts = laid([pair.encoder_tokens for pair in row], encoder_length)
    tokens, starts = laid([pair.tokens for pair in row], length)
    return serialize(
        encoder_starts=encoder_starts, encoder_tokens=encoder_tokens, starts=starts, tokens=tokens
    )


def parse_pairs(record: bytes, dtype: np.dtype) -> PackedPairs:
    """One record."""
    feature = record_features(record)
    tokens, starts = array_of(feature, "tokens", dtype), array_of(feature, "starts", np.int32)
    return PackedPairs(
        array_of(feature, "encoder_tokens", dtype),
        array_of(feature, "encoder_starts", np.int32),
        tokens,
        starts,
    )


class PairRows(StoredRows):
    """The rows of one split of one folder of pairs, by index.

    Args:
        path: folder of shards of pairs.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, the shards' block size.
        encoder_length: S, their encoder_block_size.
        start_token: what a decoder reads before each of its texts.
        cache_bytes: decoded records kept in memory.
        fingerprint: raise DataError if the shards were made with another tokenizer.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        encoder_length: int,
        start_token: int,
        cache_bytes: int = 0,
        fingerprint: str | None = None,
    ):
        reader = ShardReader(path, split, "pairs", parse_pairs, width=0)
        super().__init__(reader, [shard["blocks"] for shard in reader.manifest["shards"][split]])
        self.start_token, self.seq_length = start_token, seq_length
        check_tokenizer(path, self.manifest, fingerprint)
        sizes = {
            "data.seq_length": (seq_length, "block_size"),
            "data.encoder_length": (encoder_length, "encoder_block_size"),
        }
        for key, (given, name) in sizes.items():
            if given != self.manifest[name]:
                raise DataError(
                    f"{key} is {given}, and the pairs of {str(path)!r} are packed into rows of"
                    f" {self.manifest[name]} ({name}); set it to that, or prepare them with"
                    f" --{name.replace('_', '-')} {given}"
                )
        self._records = KeptBlocks(
            self.reader, self.reader.dtype.itemsize * (seq_length + encoder_length), cache_bytes
        )

    def batch(self, rows: Sequence[int]) -> Batch:
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
    index = np.arange(targets.shape[1], dtype=np.int32)
    real = segment_ids != 0
    positions = (index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)) * real
    encoder_tokens = np.stack([record.encoder_tokens for record in records]).astype(np.int32)
    encoder_segment_ids, _ = _segments(
        [record.encoder_starts for record in records], encoder_tokens.shape[1]
    )
    return Batch(
        tokens=np.where(real, tokens, targets).astype(np.int32),
        targets=targets,
        loss_mask=real,
        segment_ids=segment_ids,
        positions=positions,
        encoder_tokens=encoder_tokens,
        encoder_segment_ids=encoder_segment_ids,
    )


def _segments(starts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids int32 [B, length], and where segments begin, bool [B, length], of offsets whose
    last one is the end.
    """
    ids, begins = np.zeros((len(starts), length), np.int32), np.zeros((len(starts), length), bool)
    for row, begin, offsets in zip(ids, begins, starts):
        row[: offsets[-1]] = np.repeat(np.arange(1, len(offsets)), np.diff(offsets))
        begin[offsets[:-1]] = True
    return ids, begins
